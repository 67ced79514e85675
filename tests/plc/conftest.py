"""A PLC with the recorded testbed, served on loopback.

Its databases are SQLite files, or, with ``TRELLIS_TEST_PLC_DB=postgresql://user@host/postgres`` in the environment,
databases that are made on that server and dropped again.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from plc_testbed import ROOT, SETTINGS, Bed, populate

from nodemanager_trellis.api.server import Tcp
from nodemanager_trellis.plc.service import Plc
from nodemanager_trellis.plc.store import Store


@contextlib.contextmanager
def _database(directory: Path) -> Iterator[str]:
    """URL of a new database."""
    server = os.environ.get("TRELLIS_TEST_PLC_DB")
    if server is None:
        yield f"sqlite:///{directory}/plc.db"
        return
    name = f"trellis_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield sa.engine.make_url(server).set(database=name).render_as_string(hide_password=False)
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


@contextlib.contextmanager
def _serve(directory: Path) -> Iterator[Bed]:
    with _database(directory) as url:
        yield from _serve_on(url)


def _serve_on(url: str) -> Iterator[Bed]:
    store = Store(url, durable=False)
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
    with _serve(tmp_path) as bed:
        yield bed


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The recorded testbed, shared by the tests of a module; those that change it change it back or add only."""
    with _serve(tmp_path_factory.mktemp("plc")) as bed:
        populate(bed)
        yield bed
