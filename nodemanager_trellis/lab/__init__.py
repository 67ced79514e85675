"""A whole testbed on one machine: nodes as network namespaces, an underlay, an embedded PLC, one node manager each.

Nothing else of the package imports this room.
"""
