"""Trellis node manager: slices of virtual networks on shared machines (Bhatia et al., ROADS 2008)."""

__version__ = "0.1.0"
