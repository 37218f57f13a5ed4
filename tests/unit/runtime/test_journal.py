"""What a long turn writes: content once, and little beside it."""

from __future__ import annotations

from agentshell.content import fill, text_of
from agentshell.log.log import Record
from agentshell.mesh.config import RuntimeConfig
from agentshell.runtime.dispatch import LogDispatch
from agentshell.runtime.open_turn import OpenTurn
from agentshell.runtime.request import step_request
from agentshell.turn.decision import decide
from agentshell.turn.records import record_of, stamp
from agentshell.turn.state import is_over
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_TOOL, ROLE_USER, Message, Part, Text, ToolCall, ToolResult
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import StepRequest, StepSucceeded, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, StepResult, TurnLimits

_CALLS = 100
_CALL_BYTES = 8000  # about 2,000 tokens
_INPUT_BYTES = 100_000
_MAX_OVERHEAD_BYTES = 2048
_CONFIG = RuntimeConfig()


def test_a_turn_of_200_000_tokens_and_100_tool_calls_writes_each_content_once() -> None:
    journal, content = Journal(), _INPUT_BYTES
    while not is_over(journal.open_turn.turn):
        for request in journal.decide():
            result = answer(request)
            content += result.ByteSize()
            journal.write(
                TurnEvent(step_succeeded=StepSucceeded(step_id=request.step.step_id, attempt=1, result=result))
            )
    turn = journal.open_turn.turn
    assert turn.state == TURN_STATE_COMPLETED
    assert text_of(turn.output) == "Done."
    assert content > _CALLS * _CALL_BYTES
    assert (journal.turns_bytes - content) / _CALLS < _MAX_OVERHEAD_BYTES, "of agent.turns"
    assert journal.steps_bytes / _CALLS < _MAX_OVERHEAD_BYTES, "of agent.steps, where workers are in other processes"


class Journal:
    """A turn and what it writes, as an owner does."""

    def __init__(self) -> None:
        self.turns_bytes = self.steps_bytes = 0
        limits = TurnLimits(max_steps=1000, max_attempts=3)
        limits.max_duration.FromSeconds(3600)
        question = Message(role=ROLE_USER, parts=[Part(text=Text(text="x" * _INPUT_BYTES))])
        self._requested = TurnRequested(input=question, limits=limits, personality_id="handy")
        header = EventHeader(tenant_id="acme", session_id="s-1", correlation_id="T" * 26, traceparent="0" * 55)
        self.open_turn = OpenTurn(0, 0, self._requested, header)
        self.write(TurnEvent(turn_requested=self._requested))

    def write(self, event: TurnEvent) -> None:
        stamp(event, "T" * 26, self.open_turn.header)
        assert self.open_turn.apply(event)
        self.turns_bytes += size(record_of(event))
        self.open_turn.folded_offset += 1
        self.open_turn.place(event, self.open_turn.folded_offset)

    def decide(self) -> list[StepRequest]:
        """Writes what follows, and returns what the workers are asked for."""
        requests: list[StepRequest] = []
        for event in decide(self.open_turn.turn, self._requested):
            self.write(event)
            if event.HasField("step_scheduled"):
                requests.append(step_request(self.open_turn.fold, event, _CONFIG))
                asked = step_request(self.open_turn.fold, event, _CONFIG)
                self.steps_bytes += sum(map(size, LogDispatch().begin(self.open_turn, asked, lambda _: None)))
        return requests


def answer(request: StepRequest) -> StepResult:
    if request.step.HasField("tool"):
        result = ToolResult(call_id=request.step.tool.call.call_id)
        fill(result.output, "x" * _CALL_BYTES)
        return StepResult(output=Message(role=ROLE_TOOL, parts=[Part(tool_result=result)]))
    rounds = sum(message.role == ROLE_ASSISTANT for message in request.transcript)
    if rounds == _CALLS:
        return StepResult(output=Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text="Done."))]))
    call = ToolCall(call_id=f"call-{rounds}", name="read")
    fill(call.arguments, {"page": rounds})
    return StepResult(output=Message(role=ROLE_ASSISTANT, parts=[Part(tool_call=call)]))


def size(record: Record) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers.items())
    return len(record.key) + len(record.record_id) + len(record.payload) + headers
