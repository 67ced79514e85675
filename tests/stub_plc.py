"""A PLC of a few lines: answers each call from a script or by a function, and remembers the calls."""

from __future__ import annotations

import http.server
import socket
import threading
from collections import deque
from collections.abc import Callable

from nodemanager_trellis.intake import xmlrpc


class StubPlc:
    """Listens on loopback, or on a socket made elsewhere (in another net namespace).

    :param answer: (method, params) → (HTTP status, body); None: take the next of :attr:`answers`
    """

    def __init__(self, listening: socket.socket | None = None, answer: Callable | None = None) -> None:
        self.answers: deque = deque()
        self.calls: list[tuple] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                params, method = xmlrpc.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.calls.append((method, *params))
                status, data = answer(method, params) if answer else outer.answers.popleft()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        if listening is None:
            listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler, bind_and_activate=False)
        self._httpd.socket.close()
        self._httpd.socket = listening
        self._httpd.daemon_threads = True
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def will(self, *answers):
        """Script the next answers: bodies with status 200, or (status, body)."""
        for answer in answers:
            self.answers.append(answer if isinstance(answer, tuple) else (200, answer))

    def close(self):
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()
