"""The tables and lines that commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentshell.turn import envelope
from kfm.admin.v1.admin_service_pb2 import DeadLetter, Settlement
from kfm.content.v1.content_pb2 import Usage
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.turn.v1.turn_event_pb2 import RecordedTurnEvent, StepCommand, TurnEvent
from kfm.turn.v1.turn_pb2 import STEP_STATE_SCHEDULED, Turn, TurnState
from xenocomm import text_of

_PIPE_COLUMNS = 180  # Output that is not a terminal has no width of its own.
_QUESTION_CHARACTERS = 48
_PAYLOAD_CHARACTERS = 3000
_KNOWLEDGE = {
    pb.KNOWLEDGE_STATE_UNSPECIFIED: "none",
    pb.KNOWLEDGE_STATE_LOADING: "loading",
    pb.KNOWLEDGE_STATE_READY: "ready",
    pb.KNOWLEDGE_STATE_FAILED: "failed",
}
_DIGEST_CHARACTERS = len("sha256:") + 12
_MESSAGES = {envelope.TURNS: TurnEvent, envelope.STEPS: StepCommand}  # By topic, for the topics that have dead letters.
_MICROS = 1_000_000


def console() -> Console:
    """Returns the console for tables: standard output, wide if that is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False, soft_wrap=False)


def json_line(message: Message) -> str:
    """Returns a message as one line of Protobuf JSON."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False)


def turns_table(turns: Iterable[Turn]) -> Table:
    """Returns a table of turns."""
    table = _table("turn", "state", "personality", "session", "began", "ms", "tokens", "asked")
    for turn in turns:
        asked = " ".join(text_of(turn.input).split())
        table.add_row(
            turn.turn_id,
            TurnState.Name(turn.state).removeprefix("TURN_STATE_"),
            turn.personality_id,
            turn.session_id,
            turn.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
            _milliseconds(turn),
            tokens(turn.usage),
            asked if len(asked) <= _QUESTION_CHARACTERS else f"{asked[:_QUESTION_CHARACTERS]}…",
        )
    return table


def events_table(recorded: Iterable[RecordedTurnEvent]) -> Table:
    """Returns the history of a turn as a table."""
    table = _table("event", "step", "provider", "tokens", "cost", "ms")
    before = 0
    for record in recorded:
        event = record.event
        now = event.header.time.ToMicroseconds()
        result = event.step_succeeded.result
        usage = result.usage if event.HasField("step_succeeded") else event.turn_completed.usage
        done = event.HasField("step_succeeded") or event.HasField("turn_completed")
        table.add_row(
            event_name(event),
            _step(event),
            " ".join(filter(None, (result.provider, result.model))),
            tokens(usage),
            cost(usage) if done and usage.ByteSize() else "",
            f"{(now - before) / 1000:.1f}" if before else "",
        )
        before = now
    return table


def question_lines(turn: Turn, step_id: str = "") -> Iterator[str]:
    """Yields the questions that a turn waits on and how to answer them; with `step_id`, only that step's question."""
    for step in turn.plan.steps:
        if not step.HasField("approval") or step.state != STEP_STATE_SCHEDULED or step_id not in ("", step.step_id):
            continue
        asked = step.approval
        end = step.schedule_time.ToDatetime() + asked.wait.ToTimedelta()
        yield f"asks {', '.join(asked.principal_ids or [turn.principal_id])} until {end:%Y-%m-%d %H:%M:%S} UTC:"
        yield f"  {asked.question}"
        if asked.choices:
            yield f"  one of: {' | '.join(asked.choices)}"
        if asked.HasField("schema"):
            yield f"  JSON that matches {json_line(asked.schema)}"
        name = step.step_id.removeprefix(f"{turn.turn_id}/")
        yield f"  to answer: agentshell turns answer {turn.turn_id} {name} TEXT"


def packs_table(listed: pb.ListResponse) -> Table:
    """Returns a table of personalities: each live version, and the state of its pack."""
    table = _table("personality", "version", "answers", "state", "knowledge", "digest", "source")
    broken = {(failure.metadata["personality_id"], failure.metadata["version"]) for failure in listed.failures}
    for one in listed.personalities:
        is_whole = (one.personality_id, one.version) not in broken
        answers = ["by its id"] * one.is_default
        answers += ["unless another is named"] * (_is_meant(listed.default_personality_id, one))
        table.add_row(
            one.personality_id,
            one.version,
            ", ".join(answers),
            "serving" if is_whole else "broken; its last good version serves",
            _KNOWLEDGE[one.knowledge_state],
            one.digest[:_DIGEST_CHARACTERS],
            one.source,
        )
    for failure in listed.failures:
        if not failure.metadata["personality_id"]:
            table.add_row("", "", "", "broken", "", "", failure.metadata["source"])
    return table


def cases_table(rows: Iterable[tuple[str, bool, Iterable[str], float]]) -> Table:
    """Returns a table of the cases of a pack: name, whether it passed, the tools called, and how long it took."""
    table = _table("case", "outcome", "ms", "tools")
    for name, passed, tools, seconds in rows:
        table.add_row(escape(name), "passed" if passed else "failed", f"{seconds * 1000:.0f}", " ".join(tools))
    return table


def dead_letters_table(letters: Iterable[DeadLetter]) -> Table:
    """Returns a table of dead letters."""
    table = _table("dead letter", "buried", "group", "attempts", "key", "message")
    for letter in letters:
        table.add_row(
            letter.dead_letter_id,
            letter.bury_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
            letter.group,
            str(letter.attempt_count),
            escape(letter.key),
            escape(letter.message),
        )
    return table


def dead_letter_lines(letter: DeadLetter) -> Iterator[str]:
    """Yields a dead letter line by line, with the start of its payload: decoded if possible, else in hexadecimal."""
    place = f"{letter.topic}/{letter.partition}, offset {letter.offset}"
    for name, value in (
        ("dead letter", f"{letter.dead_letter_id} ({settled(letter.settlement)})"),
        ("record", f"{place}, key {letter.key}"),
        ("buried", f"{letter.bury_time.ToJsonString()} by {letter.group}, attempts: {letter.attempt_count}"),
        ("message", letter.message),
        ("stack", letter.stack.replace("\n", f"\n{'':13}")),
        *((f"  {name}", value) for name, value in sorted(letter.headers.items())),
    ):
        if value:
            yield f"{name:<12} {value}"
    yield f"payload      {len(letter.payload)} bytes"
    try:
        message = _MESSAGES[letter.topic].FromString(letter.payload)
        yield json_format.MessageToJson(message, ensure_ascii=False)[:_PAYLOAD_CHARACTERS]
    except (KeyError, DecodeError):
        yield letter.payload[: _PAYLOAD_CHARACTERS // 3].hex(" ")


def settled(settlement: Settlement.ValueType) -> str:
    """Returns what became of a dead letter, such as `replayed`."""
    return Settlement.Name(settlement).removeprefix("SETTLEMENT_").lower()


def event_name(event: TurnEvent) -> str:
    """Returns the contract's name for this kind of event."""
    kind = event.WhichOneof("event")
    return type(getattr(event, kind)).__name__ if kind else "unknown"


def tokens(usage: Usage) -> str:
    """Returns the tokens read and written; empty if there were none."""
    return f"{usage.input_tokens} + {usage.output_tokens}" if usage.input_tokens or usage.output_tokens else ""


def cost(usage: Usage) -> str:
    """Returns the cost; `unknown` if it is not known."""
    if not usage.HasField("cost"):
        return "unknown"
    amount = usage.cost.amount_micros / _MICROS
    return f"{amount:.6f} {usage.cost.currency_code}" if amount else "0"


def _step(event: TurnEvent) -> str:
    payload = getattr(event, event.WhichOneof("event") or "", None)
    step_id = str(getattr(payload, "step_id", "")).removeprefix(f"{event.turn_id}/")
    attempt = int(getattr(payload, "attempt", 1))
    return f"{step_id} (attempt {attempt})" if attempt > 1 else step_id


def _milliseconds(turn: Turn) -> str:
    if not turn.HasField("end_time"):
        return ""
    return f"{(turn.end_time.ToMicroseconds() - turn.create_time.ToMicroseconds()) / 1000:.0f}"


def _is_meant(asked: str, one: pb.Personality) -> bool:
    return asked == f"{one.personality_id}@{one.version}" or (one.is_default and asked == one.personality_id)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in ("ms", "tokens", "cost", "attempts")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table
