"""A minimal HTTP client for the gateways that speak HTTP: its time must not count as theirs."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import urlsplit

_MAX_ERROR_BYTES = 2000


class HttpClient:
    """Posts JSON below a URL, over connections that it keeps open."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        fields = {"Host": parts.netloc, "Content-Type": "application/json", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._idle: list[tuple[StreamReader, StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> AsyncGenerator[bytes]:
        """Yields the response's body as it comes. Raises RuntimeError if its status is not 200."""
        reader, writer = await self._connection()
        try:
            head = f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise RuntimeError((answer + await reader.read(_MAX_ERROR_BYTES)).decode())
            async for data in _body(reader, answer):
                yield data
        except BaseException:  # There is no telling what is still on its way.
            writer.close()
            raise
        self._idle.append((reader, writer))

    def close(self) -> None:
        """Closes the connections that are not in use."""
        for _, writer in self._idle:
            writer.close()

    async def _connection(self) -> tuple[StreamReader, StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)


async def _body(reader: StreamReader, head: bytes) -> AsyncGenerator[bytes]:
    if b"transfer-encoding: chunked" not in head:
        yield await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
