"""A real HTTP server that records the effects that the outside world sees, by idempotency key."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Ledger:
    """Listens on loopback as a context manager.

    `/slow/...` waits until `release` is set, `/refuse/...` answers 400, `/flaky/...` 503 to the first call of each key;
    everything else has an effect, once for each key, and echoes the request.
    """

    def __init__(self) -> None:
        self.calls = Counter[str]()  # key -> number of calls
        self.effects: list[tuple[str, str]] = []  # (key, path), in order of first call
        self.release = threading.Event()
        self._lock = threading.Lock()
        ledger = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                status, answer = ledger.take(self.headers["Idempotency-Key"], self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST  # noqa: N815 - the library's name

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def host(self) -> str:
        """The host and port it listens on."""
        return f"127.0.0.1:{self._server.server_port}"

    def take(self, key: str, path: str, body: bytes) -> tuple[int, Any]:
        """Serves one call."""
        with self._lock:
            self.calls[key] += 1
            first = self.calls[key] == 1
        if path.startswith("/slow/"):
            self.release.wait(30)
        if path.startswith("/refuse/"):
            return 400, {"error": "refused"}
        if path.startswith("/flaky/") and first:
            return 503, {"error": "later"}
        with self._lock:
            if (key, path) not in self.effects:
                self.effects.append((key, path))
        return 200, {"path": path, "body": body.decode(errors="replace")}

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
