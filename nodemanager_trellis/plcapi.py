"""PLCAPI client of a node: authenticates (hmac → session), asks GetSlivers, waits for changes.

The PLC is trusted for authority, not for well-formedness: every answer goes through the intake.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import logging
import pathlib
import socket
import ssl
import urllib.parse
from typing import Any

from nodemanager_trellis import atomic
from nodemanager_trellis.config import Config
from nodemanager_trellis.errors import InvalidInput, PlcError
from nodemanager_trellis.intake import xmlrpc

log = logging.getLogger(__name__)

LARGEST_ANSWER_BYTES = 16 * 2**20
MOST_VALUES = 500_000
FAULT_NO_METHOD = 100
FAULT_AUTH = 103


def node_hmac(key: str, *args: Any) -> str:
    """Hex HMAC-SHA1 with the node key over the canonical text of a call's arguments (PLC/Auth.py; planetlab.md §1.7).

    The text is ``[`` + all argument strings, sorted and joined + ``]``; lists are flattened, of structs values count.
    """

    def texts(value: Any) -> list[str]:
        if isinstance(value, (list, tuple)):
            return [t for v in value for t in texts(v)]
        if isinstance(value, dict):
            return [t for v in value.values() for t in texts(v)]
        return [str(value)]

    message = "[" + "".join(sorted(texts(list(args)))) + "]"
    return hmac.new(key.encode(), message.encode(), hashlib.sha1).hexdigest()


class PlcClient:
    """One node's access to PLC. Not for use by several threads at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = urllib.parse.urlsplit(config.plc_url)
        self._session_file = pathlib.Path(config.state_dir, "session")
        self._session = ""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._session = self._session_file.read_text("ascii").strip()

    def slivers(self) -> Any:
        """The answer of GetSlivers, as plain values.

        :raises PlcError: no answer, or a fault
        """
        return self._authenticated("GetSlivers")

    def wait(self, revision: int) -> int | None:
        """Long poll: the revision of what concerns this node, as soon as it is above ``revision`` or time is up.

        :returns: None when this PLC has no long poll (a stock MyPLC)
        :raises PlcError: no answer, or a fault
        """
        try:
            answer = self._authenticated(
                "WaitForChange",
                revision,
                self._config.long_poll_s,
                timeout_s=self._config.long_poll_s + self._config.plc_timeout_s,
            )
        except PlcError as err:
            if err.code == FAULT_NO_METHOD:
                return None
            raise
        if not isinstance(answer, int):
            raise PlcError(f"WaitForChange answered a {type(answer).__name__}, not an int")
        return answer

    def _authenticated(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        fresh = not self._session
        if fresh:
            self._login()
        try:
            return self._call(method, {"AuthMethod": "session", "session": self._session}, *args, timeout_s=timeout_s)
        except PlcError as err:
            if err.code != FAULT_AUTH or fresh:
                raise
            log.info("session refused, asking for a new one", extra={"method": method})
            self._login()
        return self._call(method, {"AuthMethod": "session", "session": self._session}, *args, timeout_s=timeout_s)

    def _login(self) -> None:
        self._session = ""
        auth = {"AuthMethod": "hmac", "node_id": self._config.node_id, "value": node_hmac(self._config.node_key)}
        session = self._call("GetSession", auth)
        if not isinstance(session, str) or not session:
            raise PlcError("GetSession did not answer a session")
        self._session = session
        self._session_file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self._session_file, session)

    def _call(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        status, body = self._post(xmlrpc.dumps_call(method, args), timeout_s or self._config.plc_timeout_s)
        if status != 200:
            # A wrong HMAC gives 500 on PLCAPI 7.1: "later", never "not authorised".
            raise PlcError(f"{method}: PLC answered HTTP {status}", retry=status >= 500)
        try:
            return xmlrpc.loads_response(body, max_bytes=LARGEST_ANSWER_BYTES, max_values=MOST_VALUES)
        except xmlrpc.XmlRpcFault as err:
            raise PlcError(f"{method}: {err}", code=err.code) from err
        except InvalidInput as err:
            raise PlcError(f"{method}: the answer is not XML-RPC we accept: {err}") from err

    def _post(self, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        connection = self._connect(timeout_s)
        try:
            connection.request("POST", self._url.path or "/", body, {"Content-Type": "text/xml"})
            answer = connection.getresponse()
            data = answer.read(LARGEST_ANSWER_BYTES + 1)
            if len(data) > LARGEST_ANSWER_BYTES:
                raise PlcError(f"PLC's answer is larger than {LARGEST_ANSWER_BYTES} bytes")
            return answer.status, data
        except (OSError, http.client.HTTPException) as err:
            raise PlcError(f"cannot ask PLC at {self._config.plc_url}: {_reason(err)}", retry=True) from err
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            context = ssl.create_default_context(cafile=self._config.plc_ca_file or None)
        except (OSError, ssl.SSLError) as err:
            raise PlcError(f"cannot use the CA file {self._config.plc_ca_file}: {err}") from err
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)


def _reason(err: Exception) -> str:
    if isinstance(err, socket.timeout):
        return "no answer in time"
    return str(err) or type(err).__name__
