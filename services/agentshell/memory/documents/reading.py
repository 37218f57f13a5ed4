"""Splits documents outside the event loop: in a thread, or in a process that can be killed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator

from agentshell.memory import chunking
from agentshell.memory.chunking import Chunk
from agentshell.memory.documents import formats
from agentshell.memory.documents.block import Block, MalformedDocument, Position

# A document that takes longer is refused.
TIMEOUT_SECONDS = 30.0
MAX_CHUNKS = 20_000
MAX_OUTPUT_BYTES = 128 * 1024 * 1024

_WORKER = "agentshell.memory.documents.worker"


class TooManyChunks(ValueError):  # noqa: N818 - it describes the document
    """A document has more chunks than are accepted."""


async def read(media_type: str, content: bytes, limit: int, overlap: int) -> list[Chunk]:
    """Returns a document's chunks, of at most `limit` characters each.

    Raises MalformedDocument, also if it takes longer than `TIMEOUT_SECONDS`, and TooManyChunks beyond `MAX_CHUNKS`.
    """
    found = formats.MEDIA_TYPES[media_type]
    until = time.monotonic() + TIMEOUT_SECONDS
    if found.is_isolated:
        output = await _isolated(media_type, content, limit)
        blocks = _decoded(output)
    else:
        blocks = formats.blocks(found, content, limit)
    return await asyncio.to_thread(_chunks, blocks, limit, overlap if found.has_overlaps else 0, until)


def _chunks(blocks: Iterable[Block], limit: int, overlap: int, until: float) -> list[Chunk]:
    chunks: list[Chunk] = []
    for chunk in chunking.chunks(_in_time(blocks, until), limit, overlap):
        if len(chunks) == MAX_CHUNKS:
            raise TooManyChunks
        chunks.append(chunk)
    return chunks


def _in_time(blocks: Iterable[Block], until: float) -> Generator[Block]:
    for block in blocks:
        if time.monotonic() > until:
            raise _too_slow()
        yield block


async def _isolated(media_type: str, content: bytes, limit: int) -> bytes:
    """Returns the worker's output for a document. Whatever happens, no worker is left behind."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", _WORKER, media_type, str(limit)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        limit=1024 * 1024,
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            feeding = asyncio.create_task(_feed(process, content))
            try:
                output = await _all(process)
                await process.wait()
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
    except TimeoutError:
        raise _too_slow() from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode or not output:
        raise MalformedDocument("takes more memory or processor time than it may: split it")
    return output


async def _feed(process: asyncio.subprocess.Process, content: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    process.stdin.write(content)
    await process.stdin.drain()
    process.stdin.close()


async def _all(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    output = bytearray()
    while piece := await process.stdout.read(65_536):
        output += piece
        if len(output) > MAX_OUTPUT_BYTES:
            raise MalformedDocument(f"has more than {MAX_OUTPUT_BYTES} bytes of text: split it")
    return bytes(output)


def _decoded(output: bytes) -> Iterator[Block]:
    """Returns the blocks in a worker's lines, the last of which says how it ended."""
    *lines, ending = output.splitlines()
    if ending != b"null":
        raise MalformedDocument(json.loads(ending))
    return map(_block, lines)


def _block(line: bytes) -> Block:
    text, level, position = json.loads(line)
    return Block(text, level, Position(*position) if position else None)


def _too_slow() -> MalformedDocument:
    return MalformedDocument(f"takes more than {TIMEOUT_SECONDS:.0f} seconds to read: split it")
