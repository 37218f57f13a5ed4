"""An answer as it grows: each piece goes out as a delta and stays, so that what was streamed is what is returned."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from google.protobuf import json_format

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.adapters import part_text
from kfm.content.v1 import content_pb2
from kfm.error.v1 import error_pb2
from kfm.provider.v1 import provider_service_pb2 as pb


@dataclass(slots=True)
class _Piece:
    """A part of the answer that may still grow."""

    kind: str
    texts: list[str] = field(default_factory=list[str])
    call_index: int = -1
    call_id: str = ""
    name: str = ""
    signature: bytes = b""


class Answer:
    """Gathers the answer of one call to a vendor."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._pieces: list[_Piece] = []
        self._calls: dict[int, _Piece] = {}

    def text(self, text: str) -> pb.GenerationDelta:
        """Adds words."""
        self._grow("text").texts.append(text)
        return pb.GenerationDelta(text=text)

    def reasoning(self, text: str) -> pb.GenerationDelta:
        """Adds reasoning."""
        self._grow("reasoning").texts.append(text)
        return pb.GenerationDelta(reasoning=text)

    def sign(self, signature: bytes) -> None:
        """Ends the reasoning under way, which may be empty, with the vendor's proof of it."""
        self._grow("reasoning").signature = signature

    def call(self, index: int, call_id: str, name: str, arguments_json: str) -> pb.GenerationDelta:
        """Adds a piece of the tool call `index`; its id and name come with the first."""
        piece = self._calls.get(index)
        if piece is None:
            piece = self._calls[index] = _Piece("tool_call", call_index=index, call_id=call_id, name=name)
            self._pieces.append(piece)
        piece.texts.append(arguments_json)
        delta = pb.ToolCallDelta(index=index, call_id=call_id, name=name, arguments_json=arguments_json)
        return pb.GenerationDelta(tool_call=delta)

    def finish(
        self, model: str, reason: pb.FinishReason.ValueType, usage: content_pb2.Usage | None
    ) -> pb.GenerateResponse:
        """Returns the whole answer. A `usage` of None is unknown. Raises PROVIDER_RESPONSE_INVALID."""
        response = pb.GenerateResponse(provider=self._provider, model=model, finish_reason=reason, usage=usage)
        response.message.role = content_pb2.ROLE_ASSISTANT
        for piece in self._pieces:
            response.message.parts.append(self._part(piece, reason))
        if not self._pieces:
            response.message.parts.add().text.SetInParent()  # A message has a part, even if nothing is said.
        return response

    def _grow(self, kind: str) -> _Piece:
        if not self._pieces or self._pieces[-1].kind != kind or self._pieces[-1].signature:
            self._pieces.append(_Piece(kind))
        return self._pieces[-1]

    def _part(self, piece: _Piece, reason: pb.FinishReason.ValueType) -> content_pb2.Part:
        text = "".join(piece.texts)
        match piece.kind:
            case "text":
                return content_pb2.Part(text=content_pb2.Text(text=text))
            case "reasoning":
                return content_pb2.Part(reasoning=content_pb2.Reasoning(text=text, signature=piece.signature))
            case _:
                call = content_pb2.ToolCall(call_id=piece.call_id, name=piece.name)
                try:
                    json_format.ParseDict(json.loads(text or "{}"), call.arguments)
                except (ValueError, json_format.ParseError) as error:
                    raise self._bad_arguments(piece, reason) from error
                return content_pb2.Part(tool_call=call)

    def _bad_arguments(self, piece: _Piece, reason: pb.FinishReason.ValueType) -> AgentShellError:
        advice = (
            "the answer reached its limit of tokens within them: raise max_output_tokens"
            if reason == pb.FINISH_REASON_LENGTH
            else "ask again, or another model"
        )
        return AgentShellError(
            error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID,
            f"provider {self._provider} called tool {piece.name!r} with what is not a JSON object; {advice}",
            metadata={"provider": self._provider, "tool": piece.name},
        )


def deltas(response: pb.GenerateResponse) -> list[pb.GenerationDelta]:
    """Returns a whole answer as deltas, one a part: how a repeat streams the first answer."""
    found: list[pb.GenerationDelta] = []
    calls = 0
    for part in response.message.parts:
        match part.WhichOneof("kind"):
            case "text" if part.text.text:
                found.append(pb.GenerationDelta(text=part.text.text))
            case "reasoning" if part.reasoning.text:
                found.append(pb.GenerationDelta(reasoning=part.reasoning.text))
            case "tool_call":
                call = part.tool_call
                arguments = part_text.dump(call.arguments)
                delta = pb.ToolCallDelta(index=calls, call_id=call.call_id, name=call.name, arguments_json=arguments)
                found.append(pb.GenerationDelta(tool_call=delta))
                calls += 1
            case _:
                pass
    return found
