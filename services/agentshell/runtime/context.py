"""Fits a conversation into a model's context. Pure: the same conversation is always cut the same way.

Tokens are estimated, because no vendor reports them beforehand: a quarter of a part's encoded bytes, plus a few for
each message. `agentshell.tokens` is more accurate but reads every word: 20 ms per 100,000 tokens, in every step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from agentshell.content import calls_of, fill, plain
from kfm.content.v1.content_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    Part,
    Passage,
    ToolResult,
)

BYTES_PER_TOKEN = 4
_MESSAGE_TOKENS = 8
_IMAGE_TOKENS = 1600
# What is kept of a shortened result.
_HEAD_CHARACTERS = 600
_TAIL_CHARACTERS = 200
# Results are shortened in groups of this size, so that what precedes the first complete one stays the same for some
# rounds and keeps hitting a vendor's prompt cache.
_SHORTENED_AT_ONCE = 4


def fit(
    system: Sequence[Message],
    history: Sequence[Message],
    passages: Sequence[Part],
    asked: Message,
    transcript: Sequence[Message],
    max_tokens: int,
) -> list[Message]:
    """Returns what to send, with what changes least first: system, history, passages and question, transcript.

    If everything exceeds `max_tokens`, this is left out, in this order, until it fits: the middles of the oldest tool
    results, the oldest history, the worst-matching passages, the oldest rounds of the transcript, and finally the
    middles of the newest results. The system messages, the question and the model's last tool calls stay complete.
    """
    history, rounds, passages = close(history), _rounds(close(transcript)), list(passages)
    over = sum(map(tokens_of, (*system, *history, asked, *(message for each in rounds for message in each))))
    over += sum(map(_part_tokens, passages)) - max_tokens
    over = _shorten_results(rounds[:-1], over)
    over = _drop_history(history, over)
    over = _drop_passages(passages, over)
    over = _drop_rounds(rounds, over)
    _shorten_results(rounds[-1:], over)
    question = Message(role=asked.role, parts=[*passages, *asked.parts])
    return [*system, *history, question, *(message for each in rounds for message in each)]


def tokens_of(message: Message) -> int:
    """Returns an estimate of the number of tokens in a message."""
    return _MESSAGE_TOKENS + sum(map(_part_tokens, message.parts))


def close(messages: Iterable[Message]) -> list[Message]:
    """Returns the messages with exactly one result for each tool call, right after the message with the call.

    A call without a result gets one that says so. A result without a call, left in the history by a turn that ended
    with a tool, becomes evidence. Vendors refuse both.
    """
    closed: list[Message] = []
    for said, answers in _exchanges(messages):
        closed.append(said)
        if calls := calls_of(said):
            results = {part.tool_result.call_id: part for part in answers if part.HasField("tool_result")}
            parts = [results.get(call.call_id) or _no_result(call.call_id) for call in calls]
            closed.append(Message(role=ROLE_TOOL, parts=parts))
        elif answers:
            closed.append(Message(role=ROLE_ASSISTANT, parts=[evidence(part, "Result") for part in answers]))
    return closed


def evidence(part: Part, title: str) -> Part:
    """Returns a part of an output as a passage, which models treat as data: converts text and tool results."""
    match part.WhichOneof("kind"):
        case "text":
            return Part(passage=Passage(title=title, text=part.text.text))
        case "tool_result":
            return Part(passage=Passage(title=title, text=_text_of(part.tool_result)))
        case _:
            return part


def _exchanges(messages: Iterable[Message]) -> list[tuple[Message, list[Part]]]:
    """Returns the messages, each with the tool results right after it."""
    exchanges: list[tuple[Message, list[Part]]] = []
    for message in messages:
        if message.role == ROLE_TOOL and exchanges:
            exchanges[-1][1].extend(message.parts)
        elif message.role != ROLE_TOOL and message.parts:
            exchanges.append((message, []))
    return exchanges


def _rounds(transcript: Sequence[Message]) -> list[list[Message]]:
    """Splits the transcript, already closed, into one list per answer of the model."""
    rounds: list[list[Message]] = []
    for message in transcript:
        if message.role == ROLE_TOOL and rounds:
            rounds[-1].append(message)
        else:
            rounds.append([message])
    return rounds


def _no_result(call_id: str) -> Part:
    part = Part(tool_result=ToolResult(call_id=call_id, is_error=True))
    message = "the call was skipped, cancelled or interrupted; whether it had an effect is not known"
    fill(part.tool_result.output, {"reason": "NO_RESULT", "message": message})
    return part


def _shorten_results(rounds: Sequence[Sequence[Message]], over: int) -> int:
    parts = [part for each in rounds for message in each for part in message.parts if part.HasField("tool_result")]
    for start in range(0, len(parts), _SHORTENED_AT_ONCE):
        if over <= 0:
            break
        for part in parts[start : start + _SHORTENED_AT_ONCE]:
            before = _part_tokens(part)
            _shorten(part.tool_result)
            over -= before - _part_tokens(part)
    return over


def _shorten(result: ToolResult) -> None:
    text = _text_of(result)
    left_out = len(text) - _HEAD_CHARACTERS - _TAIL_CHARACTERS
    head, tail = text[:_HEAD_CHARACTERS], text[-_TAIL_CHARACTERS:]
    shorter = ToolResult(call_id=result.call_id, is_error=result.is_error)
    shorter.output.string_value = f"{head}\n[... {left_out} characters left out ...]\n{tail}"
    if left_out > 0 and shorter.ByteSize() < result.ByteSize():
        result.CopyFrom(shorter)


def _drop_history(history: list[Message], over: int) -> int:
    """Drops the oldest messages. The rest begins with a user message, as some vendors require."""
    while history and over > 0:
        over -= tokens_of(history.pop(0))
        while history and history[0].role != ROLE_USER:
            over -= tokens_of(history.pop(0))
    return over


def _drop_passages(passages: list[Part], over: int) -> int:
    """Drops retrieved passages before outputs of steps, and the worst-matching passages first."""

    def worth(index: int) -> tuple[bool, float, int]:
        passage = passages[index].passage
        return (not passage.record_id, passage.score, -index)

    dropped: set[int] = set()
    for index in sorted(range(len(passages)), key=worth):
        if over <= 0:
            break
        dropped.add(index)
        over -= _part_tokens(passages[index])
    passages[:] = [part for index, part in enumerate(passages) if index not in dropped]
    return over


def _drop_rounds(rounds: list[list[Message]], over: int) -> int:
    while len(rounds) > 1 and over > 0:
        over -= sum(map(tokens_of, rounds.pop(0)))
    return over


def _text_of(result: ToolResult) -> str:
    if result.output.WhichOneof("kind") == "string_value":
        return result.output.string_value
    # The order of a Protobuf map differs between processes; a prompt must not.
    return json.dumps(plain(result.output), ensure_ascii=False, sort_keys=True)


def _part_tokens(part: Part) -> int:
    return _IMAGE_TOKENS if part.HasField("image") else -(-part.ByteSize() // BYTES_PER_TOKEN)
