"""A vendor that costs next to nothing: OpenAI's Chat Completions and Responses, streamed and not, in its own process.

It prints its address, and ends with its stdin. The prompt says what it answers (`prompt`): how many deltas, how far
apart. So it keeps no state, and a gateway needs only its address. Deltas without a pause between them are still written
one at a time, as vendors do.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import uvloop

from benchmarks.peers.serving import serve

MODEL = "gpt-6.1-sol"
INPUT_TOKENS = 256
WORD = "word "

_ASKED = re.compile(rb"(\d+) deltas, (\d+) ms apart")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STREAMED = re.compile(rb'"stream": *true')
_JSON = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_PROMPT_CHARACTERS = 1024


class _Asked(NamedTuple):
    responses: bool  # OpenAI's Responses, or its Chat Completions
    streamed: bool
    deltas: int
    milliseconds: int


def prompt(deltas: int, milliseconds: int = 0) -> str:
    """Returns 1 KB of text that asks for `deltas` deltas, `milliseconds` apart."""
    return f"{deltas} deltas, {milliseconds} ms apart. ".ljust(_PROMPT_CHARACTERS, "x")


class Upstream(asyncio.Protocol):
    """A connection. Requests come one after another and give their length."""

    def __init__(self) -> None:
        self._buffer = b""
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport to write to."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops writing."""
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers once the request is whole."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if end else None
        if length is None or len(body) < int(length[1]):
            return
        asked, self._buffer = _ASKED.search(body), b""
        count, milliseconds = (int(asked[1]), int(asked[2])) if asked else (1, 0)
        responses = b"/responses " in head[: head.index(b"\r\n")]
        request = _Asked(responses, bool(_STREAMED.search(body)), count, milliseconds)
        self._write(_pieces(request), 0, milliseconds / 1e3)

    def _write(self, pieces: Sequence[bytes], at: int, seconds: float) -> None:
        self._transport.write(pieces[at])
        if at + 1 < len(pieces):
            self._timer = asyncio.get_running_loop().call_later(seconds, self._write, pieces, at + 1, seconds)


@lru_cache
def _pieces(asked: _Asked) -> Sequence[bytes]:
    """Returns the pieces of an answer, each to be written on its own."""
    text = WORD * asked.deltas
    if not asked.streamed:
        body = json.dumps(_response(asked.deltas, text) if asked.responses else _completion(asked.deltas, text))
        return [f"{_JSON}Content-Length: {len(body)}\r\n\r\n{body}".encode()]
    events = _response_events(asked.deltas, text) if asked.responses else _completion_events(asked.deltas)
    first, *chunks = [_chunk(event) for event in events]
    *chunks, last = chunks
    return [_EVENT_STREAM + first, *chunks, last + _LAST_CHUNK]


def _completion(count: int, text: str) -> Mapping[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    return {**_COMPLETION, "object": "chat.completion", "choices": [choice], "usage": _completion_usage(count)}


def _completion_events(count: int) -> list[str]:
    frame = {**_COMPLETION, "object": "chat.completion.chunk"}

    def event(choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> str:
        return f"data: {json.dumps({**frame, 'choices': choices, 'usage': usage})}\n\n"

    def choice(delta: Mapping[str, Any], reason: str | None = None) -> Mapping[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

    words = [event([choice({"role": "assistant", "content": WORD})])]
    words += [event([choice({"content": WORD})]) for _ in range(count - 1)]
    end = event([choice({}, "stop")]) + event([], _completion_usage(count)) + "data: [DONE]\n\n"
    return [*words, end]


def _response(count: int, text: str, status: str = "completed") -> Mapping[str, Any]:
    part: Mapping[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    message: Mapping[str, Any] = {
        "type": "message",
        "id": "msg_1",
        "status": status,
        "role": "assistant",
        "content": [part],
    }
    usage = {
        "input_tokens": INPUT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": INPUT_TOKENS + count,
    }
    done = status == "completed"
    return {**_RESPONSE, "status": status, "output": [message] if done else [], "usage": usage if done else None}


def _response_events(count: int, text: str) -> list[str]:
    numbers = iter(range(count + 8))
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part: Mapping[str, Any] = {"type": "output_text", "text": "", "annotations": []}
    message: Mapping[str, Any] = {
        "type": "message",
        "id": "msg_1",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    whole = _response(count, text)

    def event(kind: str, **fields: Any) -> str:
        data = {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}
        return f"event: response.{kind}\ndata: {json.dumps(data)}\n\n"

    head = event("created", response=_response(count, "", "in_progress"))
    head += event("in_progress", response=_response(count, "", "in_progress"))
    head += event("output_item.added", output_index=0, item=message)
    head += event("content_part.added", **place, part=part)
    words = [event("output_text.delta", **place, delta=WORD, logprobs=[]) for _ in range(count)]
    tail = event("output_text.done", **place, text=text, logprobs=[])
    tail += event("content_part.done", **place, part={**part, "text": text})
    tail += event("output_item.done", output_index=0, item=whole["output"][0])
    return [head + words[0], *words[1:], tail + event("completed", response=whole)]


def _completion_usage(count: int) -> Mapping[str, Any]:
    return {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": count,
        "total_tokens": INPUT_TOKENS + count,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


_COMPLETION = {
    "id": "chatcmpl-1",
    "created": 1,
    "model": MODEL,
    "service_tier": "default",
    "system_fingerprint": "fp_1",
}
_RESPONSE: Mapping[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": MODEL,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}


def _chunk(event: str) -> bytes:
    data = event.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def nothing(_words: list[str]) -> tuple[float, ...]:
    """Answers a line: there is nothing to say."""
    return ()


async def main() -> None:
    """Listens on loopback."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    await serve(nothing, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
