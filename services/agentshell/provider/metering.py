"""Measures what an attempt at an answer used, however it ends. Pure.

The vendor's own figures are used wherever it gives them. An answer that ends without them (cut off, cancelled, or from
a vendor that gives none) is estimated: what the vendor last reported, plus an estimate of the text that came after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentshell import tokens
from agentshell.mesh.errors import AgentShellError
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Spent:
    """A finished attempt: what it used, with its cost if known, and why it failed, if it did.

    `model` is the requested one, as the request or an alias names it, or the provider's default.
    """

    provider: str
    model: str
    usage: content_pb2.Usage
    failure: AgentShellError | None = None


class Meter:
    """Meters one attempt at `generation`, delta by delta."""

    __slots__ = ("_characters", "_generation", "_said", "_since")

    def __init__(self, generation: pb.Generation) -> None:
        self._generation = generation
        self._said: content_pb2.Usage | None = None  # By the vendor, for what came before `_since`.
        self._since: list[str] = []
        self._characters = 0

    @property
    def characters(self) -> int:
        """How many characters of text have arrived."""
        return self._characters

    def add(self, deltas: Iterable[pb.GenerationDelta]) -> bool:
        """Counts deltas. Returns whether they have content, which the reader will then have seen."""
        has_content = False
        for delta in deltas:
            match delta.WhichOneof("kind"):
                case "text":
                    self._since.append(delta.text)
                    self._characters += len(delta.text)
                case "reasoning":
                    self._since.append(delta.reasoning)
                case "tool_call":
                    self._since += (delta.tool_call.name, delta.tool_call.arguments_json)
                case "usage":
                    self._said = delta.usage
                    self._since.clear()
                    continue
                case None:
                    continue
            has_content = True
        return has_content

    def usage(self) -> content_pb2.Usage:
        """Returns what an attempt that was cut off used. Without output, only what the vendor reported counts."""
        usage = self._written()
        return self._with_input(usage) if usage.output_tokens else usage

    def final(self, response: pb.GenerateResponse) -> content_pb2.Usage:
        """Returns what a whole answer used: the vendor's figures in it, or else the estimate."""
        return response.usage if response.HasField("usage") else self._with_input(self._written())

    def _written(self) -> content_pb2.Usage:
        usage = content_pb2.Usage()
        if self._said is not None:
            usage.CopyFrom(self._said)
        if written_tokens := tokens.estimate("".join(self._since)):
            usage.output_tokens += written_tokens
            usage.estimated = True
        return usage

    def _with_input(self, usage: content_pb2.Usage) -> content_pb2.Usage:
        if not usage.input_tokens:
            usage.input_tokens = tokens.estimate_generation(self._generation)
            usage.estimated = True
        return usage
