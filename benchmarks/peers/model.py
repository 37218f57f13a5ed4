"""A mocked model: as much of OpenAI's Chat Completions, streamed, as all sides need, in a process of its own.

It prints its address, and ends with its stdin. The model's name says what it answers, so that it keeps no state:
`tool-NAME` asks for that tool with the arguments of the user's message, and once the tool has answered says so in
words; `ticks-COUNT-MILLISECONDS` streams that many texts, so far apart, each the time at which it was sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Mapping
from contextlib import closing, suppress
from typing import Any

import uvloop

from benchmarks.peers.serving import serve

ANSWER = "That is what the tool says."
CALL_ID = "call-1"

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


async def answer(request: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any]]:
    """Yields the deltas of the answer, each with the reason to finish, or none."""
    kind, _, rest = request["model"].partition("-")
    messages = request["messages"]
    if kind == "ticks":
        count, milliseconds = map(int, rest.split("-"))
        for _ in range(count):
            yield {"delta": {"content": f"{time.time_ns()} "}, "finish_reason": None}
            await asyncio.sleep(milliseconds / 1e3)
        yield {"delta": {}, "finish_reason": "stop"}
    elif messages[-1]["role"] == "tool":
        yield {"delta": {"content": ANSWER}, "finish_reason": None}
        yield {"delta": {}, "finish_reason": "stop"}
    else:
        function = {"name": rest, "arguments": _text(messages[-1]["content"])}
        call = {"index": 0, "id": CALL_ID, "type": "function", "function": function}
        yield {"delta": {"tool_calls": [call]}, "finish_reason": None}
        yield {"delta": {}, "finish_reason": "tool_calls"}


def _text(content: Any) -> str:
    """Returns the words of a message, which may come in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def converse(reader: StreamReader, writer: StreamWriter) -> None:
    """Answers the requests of a connection, until its caller closes it."""
    with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            request = json.loads(await reader.readexactly(length))
            writer.write(_HEAD)
            async for choice in answer(request):
                if writer.is_closing():  # Its caller was killed or cancelled.
                    return
                writer.write(_frame(request["model"], [{"index": 0, **choice}], None))
                await writer.drain()
            writer.write(_frame(request["model"], [], _USAGE) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await writer.drain()


def _frame(model: str, choices: list[Mapping[str, Any]], usage: Mapping[str, int] | None) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": choices}
    return _chunk(f"data: {json.dumps(chunk | ({'usage': usage} if usage else {}))}\n\n".encode())


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def nothing(_words: list[str]) -> tuple[float, ...]:
    """Answers a line: there is nothing to say."""
    return ()


async def main() -> None:
    """Listens on loopback."""
    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    await serve(nothing, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
