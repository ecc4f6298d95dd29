"""Metrics over HTTP: ``GET /metrics`` on one address, nothing else.

Decides limits: a request's head in 10 s and 8 KiB, 16 requests at a time. What is answered is ``metrics``'.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any

from pyrepl.errors import InUse, UsageError
from pyrepl.runtime.addresses import show

_log = logging.getLogger("pyrepl.metrics")

MOST_AT_ONCE = 16
PATIENCE = 10.0  # seconds for a request's head, and for its answer to be taken
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Serves from the moment it is made until :meth:`stop`.

    Args:
        host, port: where; port 0: any that is free.
        text: the metrics.

    Raises:
        InUse: the address is taken.
        UsageError: no such address here.
    """

    def __init__(self, host: str, port: int, text: Callable[[], str]) -> None:
        try:
            self._server = _Server(host, port, text)
        except OSError as error:
            taken = InUse if error.errno == errno.EADDRINUSE else UsageError
            raise taken(f"cannot listen on {show(host, port)}: {error.strerror}", host=host, port=port) from error
        self.address = show(self._server.server_name, self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, name="pyrepl-metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Harmless the second time."""
        self._server.shut()
        self._thread.join()


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, text: Callable[[], str]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.text = text
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the resolver for the host's name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        late = threading.Timer(PATIENCE, _cut, (request,))
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a request for metrics broke off", exc_info=True)

    def shut(self) -> None:
        self.shutdown()
        self.server_close()


def _cut(request: socket.socket) -> None:
    """Whoever dribbles its request would keep a place for ever."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = PATIENCE
    server: _Server
    server_version, sys_version = "pyrepld", ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        body = self.server.text().encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
