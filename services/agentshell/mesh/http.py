"""A process's small HTTP server, for monitoring: /metrics, /health/live, /health/ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2


class HttpServer:
    """Serves in a thread of its own, so that it answers while the event loop is busy. `ready` starts out False."""

    def __init__(self, address: str) -> None:
        self.ready = False
        self._metrics: Callable[..., Any] = prometheus_client.make_wsgi_app()
        host, _, port = address.rpartition(":")
        try:
            self._server = make_server(host, int(port), self._serve, _Server, _QuietHandler)
        except (OSError, ValueError, OverflowError) as error:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"cannot listen on {address}: {error}; set configuration key 'server.http_address' to another",
                metadata={"key": "server.http_address", "value": address, "fix": "set another address"},
            ) from None
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/health/live":
                return _text(start_response, "200 OK", "live")
            case "/health/ready" if self.ready:
                return _text(start_response, "200 OK", "ready")
            case "/health/ready":
                return _text(start_response, "503 Service Unavailable", "not ready")
            case _:
                return _text(start_response, "404 Not Found", "try /metrics, /health/live or /health/ready")


def _text(start_response: Callable[..., Any], status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 5  # Seconds a client may hold a thread.

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing: probes come every few seconds."""
