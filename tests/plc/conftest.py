"""A PLC with the recorded testbed, served on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plc_testbed import ROOT, SETTINGS, Bed, populate

from nodemanager_trellis.api.server import Tcp
from nodemanager_trellis.plc.service import Plc
from nodemanager_trellis.plc.store import Store


def _serve(directory: Path) -> Iterator[Bed]:
    store = Store(f"sqlite:///{directory}/plc.db", durable=False)
    store.create()
    plc = Plc(store, SETTINGS)
    plc.initialise(ROOT["Username"], ROOT["AuthString"])
    server = plc.server(Tcp("127.0.0.1", 0))
    address = server.start()
    assert isinstance(address, Tcp)
    try:
        yield Bed(plc, f"http://{address}/PLCAPI/", address.host, address.port)
    finally:
        plc.revisions.close()
        server.stop()
        plc.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Bed]:
    """A new PLC: its first site, its first admin, nothing else."""
    yield from _serve(tmp_path)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The recorded testbed, shared by the tests of a module; those that change it change it back or add only."""
    for bed in _serve(tmp_path_factory.mktemp("plc")):
        populate(bed)
        yield bed
