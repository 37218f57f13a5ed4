"""A peer, or a stand-in for what both sides call, in a process of its own (see `peers/`)."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.peers.serving import READY

_START_SECONDS = 90.0
_ANSWER_SECONDS = 120.0


class Peer:
    """A running peer; it answers one line at a time."""

    def __init__(self, process: Process, module: str, word: str) -> None:
        self._process = process
        self._module = module
        self.word = word
        """What it said about itself when it was ready, such as its address."""

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    @classmethod
    @asynccontextmanager
    async def run(cls, module: str, *arguments: str) -> AsyncGenerator[Peer]:
        """Runs a module of `peers` until the context ends."""
        command = (sys.executable, "-m", f"benchmarks.peers.{module}", *arguments)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        try:
            peer = cls(process, module, "")
            async with asyncio.timeout(_START_SECONDS):
                word, _, peer.word = (await peer._line()).partition(" ")
                if word != READY:
                    raise RuntimeError(f"{module} said {word!r} where it should have said {READY!r}")
            yield peer
        finally:
            await process.communicate(b"")  # It ends with its stdin.

    async def ask(self, *words: object) -> list[float]:
        """Sends a line and returns the numbers in the answer."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        async with asyncio.timeout(_ANSWER_SECONDS):
            return [float(number) for number in (await self._line()).split()]

    async def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with status {await self._process.wait()}; it says why above")
        return line.decode().rstrip("\n")
