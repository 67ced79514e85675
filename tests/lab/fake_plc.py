"""A PLC that remembers what it is told: the methods that the lab and the examples call, and nothing more.

Run as a program it takes the arguments of ``trellis-plc serve``.
"""

from __future__ import annotations

import argparse
import pathlib
import xmlrpc.client
import xmlrpc.server


class FakePlc:
    """PLCAPI in memory; ``calls`` holds the names of the methods called."""

    def __init__(self):
        self.sites, self.nodes, self.interfaces, self.slices, self.tags, self.types = [], [], [], [], [], []
        self.calls = []
        self._last = 0

    def _dispatch(self, method, parameters):
        self.calls.append(method)
        handler = getattr(self, "do_" + method, None)
        if handler is None:
            raise xmlrpc.client.Fault(100, f"Invalid method {method}")
        if parameters[0].get("AuthString") != "secret" and parameters[0].get("AuthMethod") != "password":
            raise xmlrpc.client.Fault(103, "Failed to authenticate call")
        return handler(*parameters[1:])

    @staticmethod
    def _find(rows, chosen=None, fields=None):
        if isinstance(chosen, list):
            chosen = {"name": chosen}
        for field, value in (chosen or {}).items():
            values = value if isinstance(value, list) else [value]
            rows = [row for row in rows if row.get(field) in values]
        return [{f: row[f] for f in fields} if fields else dict(row) for row in rows]

    def _id(self):
        self._last += 1
        return self._last

    def do_AddSite(self, fields):
        self.sites.append({**fields, "site_id": len(self.sites) + 1})
        return len(self.sites)

    def do_GetSites(self, chosen=None, fields=None):
        return self._find(self.sites, chosen, fields)

    def do_AddNode(self, site, fields):
        self.nodes.append({**fields, "node_id": len(self.nodes) + 1, "peer_id": None})
        return len(self.nodes)

    def do_GetNodes(self, chosen=None, fields=None):
        return self._find(self.nodes, chosen, fields)

    def do_AddInterface(self, node_id, fields):
        self.interfaces.append({**fields, "node_id": node_id})
        return len(self.interfaces)

    def do_GetInterfaces(self, chosen=None, fields=None):
        return self._find(self.interfaces, chosen, fields)

    def do_GenerateNodeConfFile(self, node_id):
        return f'NODE_ID="{node_id}"\nNODE_KEY="key{node_id}"\nIP_METHOD="static"\n'

    def do_GetTagTypes(self, chosen=None, fields=None):
        return self._find(self.types, chosen, fields)

    def do_AddTagType(self, fields):
        if any(t["tagname"] == fields["tagname"] for t in self.types):
            raise xmlrpc.client.Fault(102, "Invalid argument: tag type name already in use")
        self.types.append({**fields, "tag_type_id": self._id()})
        return self._last

    def do_AddSlice(self, fields):
        self.slices.append({**fields, "slice_id": len(self.slices) + 1, "node_ids": []})
        return len(self.slices)

    def do_GetSlices(self, chosen=None, fields=None):
        return self._find(self.slices, chosen, fields)

    def do_AddSliceToNodes(self, name, node_ids):
        next(s for s in self.slices if s["name"] == name)["node_ids"] += node_ids
        return 1

    def do_AddSliceTag(self, name, tagname, value, node_id=None):
        if not isinstance(value, str):
            raise xmlrpc.client.Fault(102, "Invalid argument: value: expected string")
        self.tags.append(
            {
                "name": name,
                "tagname": tagname,
                "value": value,
                "node_id": node_id,
                "nodegroup_id": None,
                "slice_tag_id": self._id(),
            }
        )
        return self._last

    def do_GetSliceTags(self, chosen=None, fields=None):
        return self._find(self.tags, chosen, fields)

    def do_UpdateSliceTag(self, slice_tag_id, value):
        next(t for t in self.tags if t["slice_tag_id"] == slice_tag_id)["value"] = value
        return 1

    def do_DeleteSliceTag(self, slice_tag_id):
        self.tags[:] = [t for t in self.tags if t["slice_tag_id"] != slice_tag_id]
        return 1


class _Handler(xmlrpc.server.SimpleXMLRPCRequestHandler):
    rpc_paths = ("/PLCAPI/",)


def server(plc, host="127.0.0.1", port=0):
    """An XML-RPC server in front of it, not yet serving."""
    made = xmlrpc.server.SimpleXMLRPCServer((host, port), _Handler, logRequests=False, allow_none=True)
    made.register_instance(plc)
    return made


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    for name in ("--db", "--listen", "--admin-email", "--admin-password-file", "--ready-file"):
        parser.add_argument(name, required=True)
    parser.add_argument("--volatile", action="store_true")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    listening = server(FakePlc(), host, int(port))
    pathlib.Path(arguments.ready_file).touch()
    listening.serve_forever()


if __name__ == "__main__":
    main()
