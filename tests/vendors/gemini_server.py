"""Speaks the wire format of the Gemini API: generateContent (streamed), embeddings, token counts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.vendors.vendor_server import Request, VendorServer, pieces, sse

SIGNATURE = base64.b64encode(b"signed").decode()
_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
_STATUSES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class GeminiServer(VendorServer):
    """Answers as the model in the path, with a snapshot's number."""

    has_retry_after = False

    def is_streamed(self, request: Request) -> bool:
        """Returns whether the path asks for a stream; in this API the body does not."""
        return request.path.endswith(":streamGenerateContent")

    def events(self, request: Request) -> Sequence[bytes]:
        """Returns the chunks: thoughts first, then words, then whole tool calls; each has the usage so far."""
        parts: list[dict[str, Any]] = [{"text": text, "thought": True} for text in pieces(self.reply.reasoning)]
        parts += [{"text": text} for text in pieces(self.reply.texts)]
        finish = _FINISH[self.reply.finish]
        try:
            calls = [_call(call.call_id, call.name, "".join(call.arguments) or "{}") for call in self.reply.calls]
        except ValueError:  # Google parses its model's calls and sends none that it cannot parse.
            calls, finish = [], "MALFORMED_FUNCTION_CALL"
        if self.reply.reasoning:  # The signature is on the first call, or comes alone at the end.
            first: dict[str, Any] = calls[0] if calls else {"text": ""}
            first["thoughtSignature"] = SIGNATURE
            calls = calls or [first]
        parts += calls
        frames = [self._chunk(request, [part], at + 1, len(parts)) for at, part in enumerate(parts)]
        end = {"finishReason": finish, "index": 0, "content": {"role": "model"}}
        return [*frames, self._frame(request, {"candidates": [end], "usageMetadata": self._usage(1, 1)})]

    def answer(self, request: Request) -> dict[str, Any]:
        """Returns embeddings or the token count."""
        if request.path.endswith(":countTokens"):
            return {"totalTokens": self.reply.input_tokens}
        return {"embeddings": [{"values": [at, 0.5]} for at in range(len(request.body["requests"]))]}

    def error(self, code: str, message: str) -> dict[str, Any]:
        """Returns Google's form of an error; how long to wait is in its details."""
        status = self.fault.status or 500
        error: dict[str, Any] = {"code": status, "message": message, "status": code or _STATUSES.get(status, "OTHER")}
        if self.fault.retry_after:
            info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{self.fault.retry_after}s"}
            error["details"] = [info]
        return {"error": error}

    def error_event(self, code: str, message: str) -> bytes:
        """Returns Google's form of an error, as a frame."""
        return sse(self.error(code, message))

    def _chunk(self, request: Request, parts: Sequence[dict[str, Any]], sent: int, of: int) -> bytes:
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
        return self._frame(request, {"candidates": [candidate], "usageMetadata": self._usage(sent, of + 1)})

    def _frame(self, request: Request, chunk: dict[str, Any]) -> bytes:
        model = request.path.rpartition("/")[2].partition(":")[0]
        return sse({**chunk, "modelVersion": f"{model}-001", "responseId": "r1"})

    def _usage(self, sent: int, of: int) -> dict[str, Any]:
        reply = self.reply
        written = reply.output_tokens - reply.reasoning_tokens
        return {
            "promptTokenCount": reply.input_tokens,
            "cachedContentTokenCount": reply.cached_tokens,
            "candidatesTokenCount": written * sent // of,
            "thoughtsTokenCount": reply.reasoning_tokens,
            "totalTokenCount": reply.input_tokens + written * sent // of + reply.reasoning_tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": reply.input_tokens}],
        }


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"functionCall": {"id": call_id, "name": name, "args": json.loads(arguments)}}
