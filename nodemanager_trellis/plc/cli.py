"""``trellis-plc``: make and serve an embedded PLC."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from nodemanager_trellis import atomic, logs
from nodemanager_trellis.api.server import Tcp
from nodemanager_trellis.errors import InvalidInput, TrellisError
from nodemanager_trellis.plc.service import Plc, Settings
from nodemanager_trellis.plc.store import Store

log = logging.getLogger(__name__)


def _address(text: str) -> Tcp:
    """``HOST:PORT``, ``[V6]:PORT``."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return Tcp(host.removeprefix("[").removesuffix("]"), int(port))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="trellis-plc", description="An embedded PLC: PLCAPI for one testbed.")
    top.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    commands = top.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--db", required=True, metavar="URL", help="SQLAlchemy URL, e.g. sqlite:////var/lib/trellis/plc.db")
    common.add_argument("--admin-email", default="", metavar="E", help="the admin of a new database")
    common.add_argument("--admin-password-file", metavar="F", help="file with the admin's password on its first line")
    common.add_argument("--name", default=Settings.name, help="name of the testbed")
    common.add_argument("--slice-prefix", default=Settings.slice_prefix, help="login_base of the site of system slices")
    common.add_argument("--hrn-root", default="", help="first part of SFA names; made of the name by default")
    common.add_argument("--vsys-default", action="append", default=[], metavar="SCRIPT", help="vsys tag of new slices")
    common.add_argument("--volatile", action="store_true", help="do not wait for the disk at each change (for labs)")
    commands.add_parser("init", parents=[common], help="make the tables, the first site and the admin; then end")
    serve = commands.add_parser("serve", parents=[common], help="serve the API; makes a new database first if need be")
    serve.add_argument("--listen", type=_address, default=Tcp("127.0.0.1", 8082), metavar="HOST:PORT",
                       help="where to listen; port 0 takes a free one")  # fmt: skip
    serve.add_argument("--url-path", default="/PLCAPI/")
    serve.add_argument("--tls-cert", metavar="F", help="serve HTTPS with this certificate chain (PEM)")
    serve.add_argument("--tls-key", metavar="F", help="its private key (PEM); in the same file by default")
    serve.add_argument("--ready-file", metavar="F", help="written, with the URL, once the server listens")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 is success, 1 an error that was told, 2 a wrong command line."""
    options = parser().parse_args(argv)
    logs.setup(options.log_level, sys.stderr)
    try:
        plc = _open(options)
        try:
            if options.command == "serve":
                _serve(plc, options)
        finally:
            plc.close()
    except TrellisError as err:
        print(f"trellis-plc: {err}", file=sys.stderr)
        return 1
    return 0


def _open(options: argparse.Namespace) -> Plc:
    """The PLC of the options; its database is ready."""
    store = Store(options.db, durable=not options.volatile)
    store.create()
    settings = Settings(
        name=options.name,
        slice_prefix=options.slice_prefix,
        hrn_root=options.hrn_root,
        vsys_defaults=tuple(options.vsys_default),
    )
    plc = Plc(store, settings)
    plc.initialise(options.admin_email, _password(options.admin_password_file))
    return plc


def _password(path: str | None) -> str:
    """First line of the file."""
    if path is None:
        return ""
    try:
        return Path(path).read_text().partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidInput(f"cannot read the password file {path}: {err}") from err


def _serve(plc: Plc, options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    wanted = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)  # before any thread exists, so that all inherit it
    server = plc.server(options.listen, options.url_path, tls=_tls(options))
    address = server.start()
    scheme = "https" if options.tls_cert else "http"
    url = f"{scheme}://{address}/{options.url_path.strip('/')}/"
    log.info("listening", extra={"address": str(address), "url": url, "pid": os.getpid()})
    ready = Path(options.ready_file) if options.ready_file else None
    try:
        if ready is not None:
            try:
                atomic.write_text(ready, url + "\n")
            except OSError as err:
                raise InvalidInput(f"cannot write {ready}: {err}") from err
        number = signal.sigwait(wanted)
        log.info("stopping", extra={"signal": signal.Signals(number).name})
    finally:
        if ready is not None:
            with contextlib.suppress(OSError):
                ready.unlink()
        plc.revisions.close()
        server.stop()


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if not options.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as err:
        raise InvalidInput(f"cannot use the certificate {options.tls_cert}: {err}") from err
    return context


if __name__ == "__main__":
    sys.exit(main())

