"""An answer as it grows: what is added is told as deltas and kept, so that what was streamed is what is returned."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from google.protobuf import json_format

from agentshell.mesh.errors import AgentShellError
from agentshell.provider.adapters import part_text
from agentshell.provider.adapters.adapter import Deltas
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

    def delta(self, since: int) -> pb.GenerationDelta:
        """Returns what it has grown by since it had `since` texts."""
        text = "".join(self.texts[since:])
        match self.kind:
            case "text":
                return pb.GenerationDelta(text=text)
            case "reasoning":
                return pb.GenerationDelta(reasoning=text)
            case _:
                call_id, name = ("", "") if since else (self.call_id, self.name)
                call = pb.ToolCallDelta(index=self.call_index, call_id=call_id, name=name, arguments_json=text)
                return pb.GenerationDelta(tool_call=call)


class Answer:
    """Gathers the answer of one call to a vendor."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._pieces: list[_Piece] = []
        self._calls: dict[int, _Piece] = {}
        self._growing: _Piece | None = None
        self._told = 0  # How many texts of the growing piece are already in deltas.
        self._deltas: Deltas = []

    def text(self, text: str) -> None:
        """Adds text."""
        self._grow(self._last("text"), text)

    def reasoning(self, text: str) -> None:
        """Adds reasoning."""
        self._grow(self._last("reasoning"), text)

    def sign(self, signature: bytes) -> None:
        """Ends the current reasoning, which may be empty, with the vendor's proof of it."""
        self._last("reasoning").signature = signature

    def call(self, index: int, call_id: str, name: str, arguments_json: str) -> None:
        """Adds a piece of the tool call `index`; its id and name come with the first."""
        piece = self._calls.get(index)
        if piece is None:
            piece = self._calls[index] = _Piece("tool_call", call_index=index, call_id=call_id, name=name)
            self._pieces.append(piece)
        self._grow(piece, arguments_json)

    def used(self, usage: content_pb2.Usage) -> None:
        """Adds the usage of everything so far."""
        self._tell()
        self._deltas.append(pb.GenerationDelta(usage=usage))

    def take(self) -> Deltas:
        """Returns what was added since the last call; consecutive additions to one piece make one delta."""
        self._tell()
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(
        self, model: str, reason: pb.FinishReason.ValueType, usage: content_pb2.Usage | None
    ) -> pb.GenerateResponse:
        """Returns the whole answer. A `usage` of None is unknown. Raises PROVIDER_RESPONSE_INVALID."""
        response = pb.GenerateResponse(provider=self._provider, model=model, finish_reason=reason, usage=usage)
        response.message.role = content_pb2.ROLE_ASSISTANT
        for piece in self._pieces:
            response.message.parts.append(self._part(piece, reason))
        if not self._pieces:
            response.message.parts.add().text.SetInParent()  # A message has a part, even if it says nothing.
        return response

    def _last(self, kind: str) -> _Piece:
        if not self._pieces or self._pieces[-1].kind != kind or self._pieces[-1].signature:
            self._pieces.append(_Piece(kind))
        return self._pieces[-1]

    def _grow(self, piece: _Piece, text: str) -> None:
        if piece is not self._growing:
            self._tell()
            self._growing, self._told = piece, len(piece.texts)
        piece.texts.append(text)

    def _tell(self) -> None:
        piece = self._growing
        if piece is not None and self._told < len(piece.texts):
            self._deltas.append(piece.delta(self._told))
            self._told = len(piece.texts)

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
            else "ask again, or use another model"
        )
        return AgentShellError(
            error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID,
            f"provider {self._provider} called tool {piece.name!r} with arguments that are not a JSON object; {advice}",
            metadata={"provider": self._provider, "tool": piece.name},
        )


def deltas(response: pb.GenerateResponse) -> list[pb.GenerationDelta]:
    """Returns a whole answer as deltas, one per part, as a repeat streams the first answer."""
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
