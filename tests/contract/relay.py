"""A relay to Postgres that can be cut so that a request arrives but its answer does not."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict


class Relay:
    """Listens on loopback and relays to a Postgres. `url` is the database's URL through the relay."""

    def __init__(self, database_url: str) -> None:
        self._target = conninfo_to_dict(database_url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self.url = ""

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user, name = quote(str(self._target.get("user", ""))), self._target["dbname"]
        password = f":{quote(str(self._target['password']))}" if "password" in self._target else ""
        self.url = f"postgresql://{user}{password}@127.0.0.1:{port}/{name}?sslmode=disable&gssencmode=disable"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._hang_up()
        await self._server.wait_closed()

    def lose_answers(self) -> None:
        """From now on, the first answer on any connection closes all of them instead, and new ones are refused."""
        self._is_cut = True

    def mend(self) -> None:
        """Relays everything again."""
        self._is_cut = False

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = str(self._target.get("host", "127.0.0.1")), str(self._target.get("port") or "5432")
        if self._is_cut:
            writer.close()
            return
        if host.startswith("/"):
            far_reader, far_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer, False), self._copy(far_reader, writer, True))
        self._writers -= {writer, far_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if is_answer and self._is_cut:
                    self._hang_up()
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    def _hang_up(self) -> None:
        for writer in self._writers:
            writer.close()
