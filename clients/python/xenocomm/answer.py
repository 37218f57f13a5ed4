"""The outcome of a turn."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from kfm.content.v1.content_pb2 import Message, Usage
from kfm.turn.v1.turn_event_pb2 import TurnEvent
from xenocomm import errors
from xenocomm.errors import XenocommError
from xenocomm.text import text_of


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a turn. Pass `session_id` on to ask the next question in the same conversation."""

    turn_id: str
    session_id: str
    output: Message
    usage: Usage

    @property
    def text(self) -> str:
        """The text of the answer."""
        return text_of(self.output)

    @classmethod
    def of(cls, last: TurnEvent | None) -> Answer:
        """Returns the answer in a turn's last event. Raises XenocommError if the turn failed, or is not over."""
        if last is not None and last.HasField("turn_completed"):
            completed = last.turn_completed
            return cls(last.turn_id, last.header.session_id, completed.output, completed.usage)
        if last is not None and last.HasField("turn_failed"):
            raise errors.from_failure(last.turn_failed.failure)
        if last is not None and last.HasField("turn_cancelled"):
            raise errors.from_failure(last.turn_cancelled.failure)
        raise XenocommError(grpc.StatusCode.FAILED_PRECONDITION, "TURN_STATE", "the turn is not over: watch it")
