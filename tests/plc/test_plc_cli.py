"""The command trellis-plc as a process, and the database behind it."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.plc import store as store_module
from nodemanager_trellis.plc.store import Store

DEADLINE_S = 60
AUTH = {"AuthMethod": "password", "Username": "op@example.org", "AuthString": "secret"}


class Process:
    """A running ``trellis-plc serve``; ``url`` is known once it listens."""

    def __init__(self, directory: Path, *more: str, listen: str = "127.0.0.1:0") -> None:
        password = directory / "password"
        password.write_text("secret\n")
        self.ready = directory / "ready"
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "nodemanager_trellis.plc.cli", "serve", "--db", f"sqlite:///{directory}/plc.db",
                "--admin-email", AUTH["Username"], "--admin-password-file", str(password), "--listen", listen,
                "--ready-file", str(self.ready), *more,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self.url = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r": listening .*\burl=(\S+)", line):
                self.url = found[1].strip('"')
                self._listening.set()
        self._listening.set()

    def wait_listening(self) -> Any:
        """A client of it."""
        assert self._listening.wait(DEADLINE_S)
        assert self.url, self.lines
        return xmlrpc.client.ServerProxy(self.url, allow_none=True)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return status


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    process.end(signal.SIGKILL)


def test_serve_makes_a_new_plc_and_tells_where_it_listens(served: Process) -> None:
    """Log line and ready file hold the URL with the chosen port; site and admin exist."""
    api = served.wait_listening()

    assert api.GetSites(AUTH, None, ["login_base"]) == [{"login_base": "pl"}]
    assert api.GetPersons(AUTH, None, ["email", "roles"]) == [{"email": AUTH["Username"], "roles": ["admin"]}]
    assert served.ready.read_text() == served.url + "\n"
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*/PLCAPI/", served.url)


def test_sigterm_ends_it_cleanly(served: Process) -> None:
    """Exit 0, the ready file is gone, a waiter gets its answer or a closed connection."""
    served.wait_listening()

    assert served.end() == 0
    assert not served.ready.exists()
    assert any(": stopping " in line for line in served.lines)


def test_what_was_answered_outlives_a_kill(tmp_path: Path) -> None:
    """After SIGKILL the next process has every change that was confirmed, and old sessions are good."""
    first = Process(tmp_path)
    api = first.wait_listening()
    session = {"AuthMethod": "session", "session": api.GetSession(AUTH)}
    site = api.AddSite(session, {"name": "X", "abbreviated_name": "X", "login_base": "x"})
    revision = api.WaitForChange(session, -1, 0)
    first.end(signal.SIGKILL)
    second = Process(tmp_path)
    try:
        api = second.wait_listening()
        assert api.GetSites(session, ["x"], ["site_id"]) == [{"site_id": site}]
        assert api.WaitForChange(session, -1, 0) > revision
    finally:
        second.end()


def test_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    """Exit 1; the last line names address and port; no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = Process(tmp_path, listen=address)
        status = process.process.wait(DEADLINE_S)
        process.end()

    assert status == 1
    assert process.lines[-1] == f"trellis-plc: cannot listen on {address}: Address already in use"
    assert not any("Traceback" in line for line in process.lines)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "nodemanager_trellis.plc.cli", *arguments],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip


def test_init_twice_equals_once(tmp_path: Path) -> None:
    """The second init changes nothing, and needs no password any more."""
    (tmp_path / "pw").write_text("secret\n")
    url = f"sqlite:///{tmp_path}/plc.db"
    first = run("init", "--db", url, "--admin-email", "a@b.test", "--admin-password-file", str(tmp_path / "pw"))
    second = run("init", "--db", url)

    assert (first.returncode, second.returncode) == (0, 0)
    assert "database initialised" in first.stderr
    assert second.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--db", "sqlite://"), 1, "in-memory"),
        (("--db", "nonsense"), 1, "nonsense"),
        (("--db", "nosuchdialect://x/y"), 1, "nosuchdialect"),
        (("--db", "sqlite:////nonexistent/dir/plc.db"), 1, "cannot use the database"),
        (("--db", "sqlite:///{dir}/plc.db"), 1, "needs an admin"),
        (("--db", "sqlite:///{dir}/plc.db", "--admin-password-file", "{dir}/none"), 1, "password file"),
        ((), 2, "--db"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    """One sentence on stderr, no traceback."""
    result = run("init", *(argument.replace("{dir}", str(tmp_path)) for argument in arguments))

    assert result.returncode == status
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_https_is_served_with_a_certificate(tmp_path: Path) -> None:
    """With --tls-cert the URL is https and a client that trusts the certificate is answered."""
    certificate = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(tmp_path / "key.pem"), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    process = Process(tmp_path, "--tls-cert", str(certificate), "--tls-key", str(tmp_path / "key.pem"))
    try:
        process.wait_listening()
        trust = ssl.create_default_context(cafile=str(certificate))
        with xmlrpc.client.ServerProxy(process.url, allow_none=True, context=trust) as api:
            assert api.AuthCheck(AUTH) == 1
        assert process.url.startswith("https://")
    finally:
        process.end()


# The database ---------------------------------------------------------------------------------------------------


def test_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """A database that a newer trellis-plc made is not touched."""
    Store(f"sqlite:///{tmp_path}/plc.db").create()
    with contextlib.closing(sqlite3.connect(tmp_path / "plc.db")) as raw, raw:
        raw.execute("UPDATE plc_state SET schema_version = 99")

    with pytest.raises(InvalidInput, match="newer trellis-plc"):
        Store(f"sqlite:///{tmp_path}/plc.db").create()


def test_older_database_is_migrated_in_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is run once, in order; a failing step leaves the database as it was."""
    url = f"sqlite:///{tmp_path}/plc.db"
    Store(url).create()
    steps: list[int] = []

    def fail(connection: Any) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x)")
        raise InvalidInput("step failed")

    monkeypatch.setattr(store_module, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(store_module, "MIGRATIONS", {1: lambda c: steps.append(1), 2: fail})
    with pytest.raises(InvalidInput, match="step failed"):
        Store(url).create()
    with contextlib.closing(sqlite3.connect(tmp_path / "plc.db")) as raw:
        assert raw.execute("SELECT schema_version FROM plc_state").fetchall() == [(1,)]
        assert raw.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchall() == [(0,)]
    monkeypatch.setattr(store_module, "MIGRATIONS", {1: lambda c: steps.append(1), 2: lambda c: steps.append(2)})
    assert Store(url).create() is False
    assert Store(url).create() is False
    assert steps == [1, 1, 2]


def test_database_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Node keys and password hashes are in it: nobody else may read it."""
    Store(f"sqlite:///{tmp_path}/plc.db").create()

    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
