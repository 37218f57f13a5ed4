"""Speaks OpenAI's wire formats: Responses, Chat Completions (both streamed), counts, embeddings, moderations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.vendors.vendor_server import Request, VendorServer, pieces, sse

_SNAPSHOT = "-2026-09-29"
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class OpenAIServer(VendorServer):
    """Serves Responses. Answers as `model` with a snapshot's date."""

    def events(self, request: Request) -> Sequence[bytes]:
        """Returns the events of a response: reasoning first, then words, then tool calls, each an item."""
        response: dict[str, Any] = {"id": "resp_1", "object": "response", "output": []}
        response["model"] = request.body["model"] + _SNAPSHOT
        frames: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**response, "status": "in_progress"}},
            {"type": "response.in_progress", "response": {**response, "status": "in_progress"}},
        ]
        for index, (item, events) in enumerate(self._items()):
            at = {"output_index": index}
            frames.append({"type": "response.output_item.added", "item": {**item, "status": "in_progress"}, **at})
            frames += [{**event, "item_id": item["id"], **at} for event in events]
            frames.append({"type": "response.output_item.done", "item": {**item, "status": "completed"}, **at})
        frames.append(self._end(response))
        return [sse({**frame, "sequence_number": at}, frame["type"]) for at, frame in enumerate(frames)]

    def answer(self, request: Request) -> dict[str, Any]:
        """Returns a token count, embeddings (last one first) or moderation results."""
        if request.path.endswith("/input_tokens"):
            return {"object": "response.input_tokens", "input_tokens": self.reply.input_tokens}
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
        """Returns OpenAI's form of an error, as an event."""
        return sse({"type": "error", "code": code, "message": message, "param": None, "sequence_number": 9}, "error")

    def _items(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yields each finished output item, with the events that build it up."""
        reply = self.reply
        if reply.reasoning:
            summary = [{"type": "summary_text", "text": "".join(reply.reasoning)}]
            item: dict[str, Any] = {
                "id": "rs_1",
                "type": "reasoning",
                "summary": summary,
                "encrypted_content": "c2lnbmVk",
            }
            part = {"type": "response.reasoning_summary_part.added", "summary_index": 0}
            delta = {"type": "response.reasoning_summary_text.delta", "summary_index": 0}
            yield item, [part, *({**delta, "delta": text} for text in pieces(reply.reasoning))]
        said = [("response.output_text.delta", text) for text in pieces(reply.texts)]
        said += [("response.refusal.delta", text) for text in pieces(reply.refusal)]
        if said:
            message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
            yield message, [{"type": kind, "content_index": 0, "delta": text} for kind, text in said]
        for at, call in enumerate(reply.calls):
            item = {"id": f"fc_{at}", "type": "function_call", "call_id": call.call_id, "name": call.name}
            growth = [{"type": "response.function_call_arguments.delta", "delta": piece} for piece in call.arguments]
            yield {**item, "arguments": ""}, growth

    def _end(self, response: dict[str, Any]) -> dict[str, Any]:
        reply = self.reply
        end: dict[str, Any] = {**response, "status": "completed", "incomplete_details": None, "error": None}
        if reason := _INCOMPLETE.get(reply.finish):
            end |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
        if reply.finish == "failed":
            end |= {"status": "failed", "error": {"code": "server_error", "message": "it failed"}}
        end["usage"] = {
            "input_tokens": reply.input_tokens,
            "input_tokens_details": {
                "cached_tokens": reply.cached_tokens,
                "cache_write_tokens": reply.cache_write_tokens,
            },
            "output_tokens": reply.output_tokens,
            "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
            "total_tokens": reply.input_tokens + reply.output_tokens,
        }
        return {"type": f"response.{end['status']}", "response": end}


class OpenAIChatServer(OpenAIServer):
    """Serves Chat Completions."""

    def events(self, request: Request) -> Sequence[bytes]:
        """Returns the chunks, then one with the usage, and the end mark."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": text} for text in pieces(self.reply.texts)]
        deltas += [{"refusal": text} for text in pieces(self.reply.refusal)]
        for index, call in enumerate(self.reply.calls):
            function = {"name": call.name, "arguments": ""}
            deltas.append(
                {"tool_calls": [{"index": index, "id": call.call_id, "type": "function", "function": function}]}
            )
            deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in call.arguments]
        frames = [self.chunk(request, choices=[_choice(delta)]) for delta in deltas]
        frames.append(self.chunk(request, choices=[_choice({}, self.reply.finish)]))
        if request.body.get("stream_options", {}).get("include_usage"):
            frames.append(self.chunk(request, choices=[], usage=self._usage()))
        return [*frames, b"data: [DONE]\n\n"]

    def chunk(self, request: Request, **fields: Any) -> bytes:
        """Returns a chunk's frame."""
        model = request.body["model"] + _SNAPSHOT
        return sse({"id": "c1", "object": "chat.completion.chunk", "model": model, **fields})

    def error_event(self, code: str, message: str) -> bytes:
        """Returns OpenAI's form of an error, as a frame."""
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


@dataclass
class OpenAICompatibleServer(OpenAIChatServer):
    """Imitates Chat Completions.

    `is_terse`: omits what some servers omit: ids and indices of tool calls, which come in one piece; details of usage;
    names of models; the end mark of streams. `has_usage`: reports usage, asked or not.
    `refuses_stream_options`: rejects them as an unknown field, as Mistral does.
    """

    is_terse: bool = False
    has_usage: bool = True
    refuses_stream_options: bool = False

    def events(self, request: Request) -> Sequence[bytes]:
        """Returns the chunks; the last has the usage."""
        if not self.is_terse:
            frames = super().events(request)
            return frames if self.has_usage else [frame for frame in frames if b'"usage"' not in frame]
        deltas: list[dict[str, Any]] = [{"reasoning_content": text} for text in pieces(self.reply.reasoning)]
        deltas += [{"content": text} for text in pieces(self.reply.texts)]
        deltas += [
            {"tool_calls": [{"function": {"name": call.name, "arguments": "".join(call.arguments)}}]}
            for call in self.reply.calls
        ]
        frames = [sse({"choices": [{"delta": delta}]}) for delta in deltas]
        end: dict[str, Any] = {"choices": [{"finish_reason": self.reply.finish}]}
        if self.has_usage:
            end["usage"] = {"prompt_tokens": self.reply.input_tokens, "completion_tokens": self.reply.output_tokens}
        return [*frames, sse(end)]

    def refused(self, request: Request) -> bytes | None:
        """Refuses a field in Mistral's words."""
        if not self.refuses_stream_options or "stream_options" not in request.body:
            return None
        detail = {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
        return json.dumps(
            {"object": "error", "message": {"detail": [detail]}, "type": "invalid_request_error"}
        ).encode()


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}
