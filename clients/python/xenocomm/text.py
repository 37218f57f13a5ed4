"""Assembles the text of a turn from its updates. Pure."""

from __future__ import annotations

from kfm.content.v1.content_pb2 import Message
from kfm.turn.v1.turn_event_pb2 import OutputDelta, TurnEvent, TurnUpdate

_LAST_EVENTS = ("turn_completed", "turn_failed", "turn_cancelled")


class Transcript:
    """Folds the updates of one turn, in order.

    `texts` is what each step has said so far, by step id. `last_event` is the one that ended the turn, None until then.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.last_event: TurnEvent | None = None
        self._runs: dict[str, str] = {}
        self._last_step = ""

    @property
    def text(self) -> str:
        """The answer so far: what the plan's last step has said; once the turn has completed, its answer."""
        if self.last_event is not None and self.last_event.HasField("turn_completed"):
            return text_of(self.last_event.turn_completed.output)
        return self.texts.get(self._last_step, "")

    def add(self, update: TurnUpdate) -> None:
        """Adds the next update."""
        if update.HasField("delta"):
            self._grow(update.delta)
            return
        event = update.event
        if event.HasField("plan_created"):
            self._last_step = event.plan_created.plan.steps[-1].step_id
        elif event.HasField("step_succeeded"):
            succeeded = event.step_succeeded
            self.texts[succeeded.step_id] = text_of(succeeded.result.output)
        elif event.WhichOneof("event") in _LAST_EVENTS:
            self.last_event = event

    def _grow(self, delta: OutputDelta) -> None:
        if self._runs.get(delta.step_id) != delta.run_id:  # A new run voids what earlier ones said.
            self._runs[delta.step_id] = delta.run_id
            self.texts[delta.step_id] = ""
        self.texts[delta.step_id] += "".join(delta.texts)


def text_of(message: Message) -> str:
    """Returns the text of a message: its text parts, joined in the order in which they were streamed."""
    return "".join(part.text.text for part in message.parts if part.HasField("text"))
