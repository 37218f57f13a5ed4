"""Speaks Anthropic's wire format: Messages (streamed), token counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.vendors.vendor_server import Request, VendorServer, pieces, sse

_SNAPSHOT = "-20260929"
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class AnthropicServer(VendorServer):
    """Answers as `model` with a snapshot's date."""

    def events(self, request: Request) -> Sequence[bytes]:
        """Returns the events: reasoning first, then words, then tool calls, each a block."""
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if self.reply.reasoning:
            deltas = [{"type": "thinking_delta", "thinking": text} for text in pieces(self.reply.reasoning)]
            block = {"type": "thinking", "thinking": "", "signature": ""}
            blocks.append((block, [*deltas, {"type": "signature_delta", "signature": "c2lnbmVk"}]))
            blocks.append(({"type": "redacted_thinking", "data": "c2VjcmV0"}, []))
        if self.reply.texts:
            deltas = [{"type": "text_delta", "text": text} for text in pieces(self.reply.texts)]
            blocks.append(({"type": "text", "text": ""}, deltas))
        for call in self.reply.calls:
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *call.arguments)]
            blocks.append(({"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}}, deltas))

        frames = [self._start(request.body["model"] + _SNAPSHOT), _frame({"type": "ping"})]
        for index, (block, deltas) in enumerate(blocks):
            frames.append(_frame({"type": "content_block_start", "index": index, "content_block": block}))
            frames += [_frame({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas]
            frames.append(_frame({"type": "content_block_stop", "index": index}))
        details = {"thinking_tokens": self.reply.reasoning_tokens}
        usage = {"output_tokens": self.reply.output_tokens, "output_tokens_details": details}
        stop = {"stop_reason": _STOP_REASONS[self.reply.finish], "stop_sequence": None}
        frames.append(_frame({"type": "message_delta", "delta": stop, "usage": usage}))
        return [*frames, _frame({"type": "message_stop"})]

    def answer(self, request: Request) -> dict[str, Any]:
        """Returns the token count."""
        return {"input_tokens": self.reply.input_tokens}

    def error(self, code: str, message: str) -> dict[str, Any]:
        """Returns Anthropic's form of an error."""
        return {"type": "error", "error": {"type": code or "some_error", "message": message}}

    def error_event(self, code: str, message: str) -> bytes:
        """Returns Anthropic's form of an error, as a frame."""
        return _frame(self.error(code, message))

    def _start(self, model: str) -> bytes:
        reply = self.reply
        usage = {
            "input_tokens": reply.input_tokens - reply.cached_tokens - reply.cache_write_tokens,
            "cache_read_input_tokens": reply.cached_tokens,
            "cache_creation_input_tokens": reply.cache_write_tokens,
            "output_tokens": 1,
        }
        message: dict[str, Any] = {"id": "m1", "type": "message", "role": "assistant", "model": model, "content": []}
        message |= {"usage": usage, "stop_reason": None, "stop_sequence": None}
        return _frame({"type": "message_start", "message": message})


def _frame(data: dict[str, Any]) -> bytes:
    return sse(data, data["type"])
