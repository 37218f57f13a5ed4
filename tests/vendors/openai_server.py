"""Speaks OpenAI's wire format: Chat Completions (streamed), embeddings, moderations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.vendors.vendor_server import Request, VendorServer, pieces, sse

_SNAPSHOT = "-2026-09-29"


class OpenAIServer(VendorServer):
    """Answers as `model` with a snapshot's date."""

    def events(self, request: Request) -> Sequence[bytes]:
        """Returns the chunks, the usage in one of its own after the last choice, and the end mark."""
        model = request.body["model"] + _SNAPSHOT

        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return sse({"id": "c1", "object": "chat.completion.chunk", "model": model, "choices": [choice]})

        frames = [chunk({"role": "assistant", "content": ""})]
        frames += [chunk({"content": text}) for text in pieces(self.reply.texts)]
        for index, call in enumerate(self.reply.calls):
            function = {"name": call.name, "arguments": ""}
            first = {"index": index, "id": call.call_id, "type": "function", "function": function}
            frames.append(chunk({"tool_calls": [first]}))
            frames += [
                chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}) for piece in call.arguments
            ]
        frames.append(chunk({}, self.reply.finish))
        if request.body.get("stream_options", {}).get("include_usage"):
            end: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "model": model, "choices": []}
            frames.append(sse({**end, "usage": self._usage()}))
        return [*frames, b"data: [DONE]\n\n"]

    def answer(self, request: Request) -> dict[str, Any]:
        """Returns vectors, last first, or verdicts."""
        texts = request.body["input"]
        if request.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": at, "embedding": [at, 0.5]} for at in range(len(texts))]
            usage = {"prompt_tokens": 7 * len(texts), "total_tokens": 7 * len(texts)}
            return {"object": "list", "model": request.body["model"], "data": data[::-1], "usage": usage}
        results = [
            {
                "flagged": "harm" in text,
                "categories": {"violence": "harm" in text, "self-harm": False},
                "category_scores": {"violence": 0.75 if "harm" in text else 0.25, "self-harm": 0.125},
            }
            for text in texts
        ]
        return {"id": "m1", "model": request.body["model"], "results": results}

    def error(self, code: str, message: str) -> dict[str, Any]:
        """Returns OpenAI's form of an error."""
        return {"error": {"message": message, "type": "some_error", "code": code or None, "param": None}}

    def error_event(self, code: str, message: str) -> bytes:
        """Returns the same, as a frame."""
        return sse(self.error(code, message))

    def _usage(self) -> dict[str, Any]:
        reply = self.reply
        read = {"cached_tokens": reply.cached_tokens, "cache_write_tokens": reply.cache_write_tokens}
        return {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
            "prompt_tokens_details": read,
            "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
        }
