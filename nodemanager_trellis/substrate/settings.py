"""Where one node's things live and how they are marked."""

from __future__ import annotations

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Given to every driver."""

    instance: str
    """prefix of our names: ``trellis.37``"""
    state_dir: pathlib.Path
    """survives a reboot: sliver directories, skeleton"""
    run_dir: pathlib.Path
    """gone after a reboot: ``user/NAME`` (user namespaces), locks, sockets"""
    bpffs: pathlib.Path = pathlib.Path("/sys/fs/bpf")
    netns_dir: pathlib.Path = pathlib.Path("/run/netns")
    """where the net namespaces of slivers are bound, so that ``ip netns`` sees them"""
    link_group: int = 32273
    """mark of every device we make"""
    start_parallel: int = 4

    @property
    def slivers_dir(self) -> pathlib.Path:
        """lxcpath: one directory a sliver."""
        return self.state_dir / "slivers"
