"""What a long turn writes: content once, and little besides."""

from __future__ import annotations

import json

from agentshell.content import fill, text_of
from agentshell.log.log import Record
from agentshell.mesh.config import RuntimeConfig
from agentshell.runtime.dispatch import LogDispatch
from agentshell.runtime.open_turn import OpenTurn
from agentshell.runtime.request import step_request
from agentshell.turn.decision import decide
from agentshell.turn.records import record_of, stamp
from agentshell.turn.state import is_over
from kfm.content.v1.content_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    Money,
    Part,
    Text,
    ToolCall,
    ToolResult,
    Usage,
)
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import StepRequest, StepSucceeded, TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED, ModelChoice, StepResult, TurnLimits

_CALLS = 100
_CALL_BYTES = 8000  # about 2,000 tokens
_INPUT_BYTES = 100_000
# As long as they are where clients choose their sessions.
_TENANT_ID, _SESSION_ID = "acme", "0f8fad5b-d9cb-469f-a165-70867728950e"
_TURN_ID, _CALL_ID = "01M80TS5ABME3Q465AXSQ4GZGH", "call_{:024}"
_TRACEPARENT = "00-78203b4daaee3a2d315b788282e0cf6a-ff0a03643b2e3890-01"
_DIGEST = "sha256:" + 64 * "0"
_MAX_OVERHEAD_BYTES = 1900  # The limit is 2 KB.
_CONFIG = RuntimeConfig()


def test_a_turn_of_200_000_tokens_and_100_tool_calls_writes_each_content_once() -> None:
    journal, content = Journal(), _INPUT_BYTES
    while not is_over(journal.open_turn.turn):
        for request in journal.decide():
            result = answer(request)
            content += result.output.ByteSize()
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
    """A turn and what its owner writes."""

    def __init__(self) -> None:
        self.turns_bytes = self.steps_bytes = 0
        limits = TurnLimits(max_steps=1000, max_attempts=3)
        limits.max_duration.FromSeconds(3600)
        question = Message(role=ROLE_USER, parts=[Part(text=Text(text="x" * _INPUT_BYTES))])
        self._requested = TurnRequested(
            input=question,
            limits=limits,
            principal_id="ann",
            personality_id="handy",
            personality_digest=_DIGEST,
            model=ModelChoice(provider="openai"),
        )
        header = EventHeader(
            tenant_id=_TENANT_ID, session_id=_SESSION_ID, correlation_id=_TURN_ID, traceparent=_TRACEPARENT
        )
        self.open_turn = OpenTurn(0, 0, self._requested, header)
        self.write(TurnEvent(turn_requested=self._requested))

    def write(self, event: TurnEvent) -> None:
        stamp(event, _TURN_ID, self.open_turn.header)
        assert self.open_turn.apply(event)
        self.turns_bytes += size(record_of(event))
        self.open_turn.folded_offset += 1
        self.open_turn.place(event, self.open_turn.folded_offset)

    def decide(self) -> list[StepRequest]:
        """Writes what follows, and returns the requests to workers."""
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
        return StepResult(output=Message(role=ROLE_TOOL, parts=[Part(tool_result=result)]), provider="tool")
    rounds = sum(message.role == ROLE_ASSISTANT for message in request.transcript)
    if rounds == _CALLS:
        return StepResult(output=Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text="Done."))]))
    call = ToolCall(call_id=_CALL_ID.format(rounds), name="read_page")
    fill(call.arguments, {"page": rounds})
    asks = Message(role=ROLE_ASSISTANT, parts=[Part(tool_call=call)])
    usage = Usage(input_tokens=199_000, output_tokens=300, cached_input_tokens=190_000)
    usage.cost.CopyFrom(Money(amount_micros=5020, currency_code="USD"))
    return StepResult(output=asks, usage=usage, provider="openai", model="gpt-6.1-sol-2026-09-29")


def size(record: Record) -> int:
    """All of it, the headers as JSON, as in Postgres."""
    return len(record.key) + len(record.record_id) + len(record.payload) + len(json.dumps(dict(record.headers)))
