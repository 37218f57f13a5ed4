"""Which parts of a conversation a model gets."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.content import calls_of
from agentshell.runtime import context
from kfm.content.v1.content_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Image,
    Message,
    Part,
    Passage,
    Role,
    Text,
    ToolCall,
    ToolResult,
)

ROOM = 1_000_000
SYSTEM = [Message(role=ROLE_SYSTEM, parts=[Part(text=Text(text="You are a guide."))])]
QUESTION = Message(role=ROLE_USER, parts=[Part(text=Text(text="What now?"))])


def said(role: Role.ValueType, text: str) -> Message:
    return Message(role=role, parts=[Part(text=Text(text=text))])


def asking(*call_ids: str) -> Message:
    calls = [Part(tool_call=ToolCall(call_id=call_id, name="clock")) for call_id in call_ids]
    return Message(role=ROLE_ASSISTANT, parts=[Part(text=Text(text="Let me see.")), *calls])


def answering(**texts: str) -> Message:
    message = Message(role=ROLE_TOOL)
    for call_id, text in texts.items():
        message.parts.add(tool_result=ToolResult(call_id=call_id)).tool_result.output.string_value = text
    return message


def passage(name: str, score: float, text: str = "x" * 400) -> Part:
    return Part(passage=Passage(record_id=name, score=score, text=text))


def total(messages: Sequence[Message]) -> int:
    return sum(map(context.tokens_of, messages))


def result_texts(messages: Sequence[Message]) -> list[str]:
    return [part.tool_result.output.string_value for m in messages for part in m.parts if part.HasField("tool_result")]


def test_what_fits_is_sent_whole_and_in_order() -> None:
    history = [said(ROLE_USER, "Hi"), said(ROLE_ASSISTANT, "Hello")]
    transcript = [asking("a", "b"), answering(a="1", b="2"), asking("c"), answering(c="3")]
    sent = context.fit(SYSTEM, history, [passage("r", 1)], QUESTION, transcript, ROOM)
    question = Message(role=ROLE_USER, parts=[passage("r", 1), *QUESTION.parts])
    assert sent == [*SYSTEM, *history, question, *transcript]


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    [_, closed] = context.close([asking("a", "b"), answering(b="2")])
    none, given_one = (part.tool_result for part in closed.parts)
    assert (none.call_id, none.is_error, given_one.output.string_value) == ("a", True, "2")
    assert MessageToDict(none.output) == {
        "reason": "NO_RESULT",
        "message": "the call was skipped, cancelled or interrupted; whether it had an effect is not known",
    }


def test_the_results_of_a_round_are_one_message_in_the_order_of_its_calls() -> None:
    messages = [asking("a", "b"), answering(b="2"), Message(role=ROLE_TOOL), answering(a="1")]
    assert context.close(messages) == [asking("a", "b"), answering(a="1", b="2")]


def test_an_answer_that_was_a_tools_result_is_evidence_in_the_history() -> None:
    history = [said(ROLE_USER, "Time?"), answering(step="Noon."), said(ROLE_USER, "And now?")]
    evidence = Message(role=ROLE_ASSISTANT, parts=[Part(passage=Passage(title="Result", text="Noon."))])
    assert context.close(history) == [history[0], evidence, history[2]]


def test_the_oldest_results_are_shortened_first_and_the_newest_are_whole() -> None:
    text = "".join(f"{number:06}," for number in range(1000))
    transcript = [message for index in range(9) for message in (asking(f"c{index}"), answering(**{f"c{index}": text}))]
    sent = context.fit(SYSTEM, [said(ROLE_USER, "Hi")], [], QUESTION, transcript, total(transcript) - 100)
    texts = result_texts(sent)
    shortened = f"{text[:600]}\n[... 6200 characters left out ...]\n{text[-200:]}"
    assert texts == [shortened] * 4 + [text] * 5  # Several at a time, so that a vendor's prompt cache keeps hitting.
    assert sent[1] == said(ROLE_USER, "Hi")
    assert [m.role for m in sent[3:]] == [ROLE_ASSISTANT, ROLE_TOOL] * 9


def test_then_the_oldest_history_is_dropped_and_what_is_left_begins_with_the_user() -> None:
    history = [said(role, "x" * 400) for role in (ROLE_USER, ROLE_ASSISTANT) * 3]
    found = [passage("r", 1)]
    budget = total([*SYSTEM, *history, QUESTION]) + 50
    sent = context.fit(SYSTEM, history, found, QUESTION, [], budget)
    assert sent == [*SYSTEM, *history[2:], Message(role=ROLE_USER, parts=[*found, *QUESTION.parts])]


def test_then_the_passages_that_fit_least_are_dropped_and_outputs_of_steps_last() -> None:
    output = Part(passage=Passage(title="Output of step T/a", text="x" * 400))
    found = [output, passage("good", 0.9), passage("poor", 0.1), passage("fair", 0.5)]
    budget = total([*SYSTEM, QUESTION]) + 2 * 110
    assert context.fit(SYSTEM, [], found, QUESTION, [], budget) == [
        *SYSTEM,
        Message(role=ROLE_USER, parts=[output, found[1], *QUESTION.parts]),
    ]


def test_the_question_and_the_last_round_are_sent_even_where_they_alone_are_too_much() -> None:
    transcript = [asking("a"), answering(a="1"), asking("b"), answering(b="y" * 5000)]
    sent = context.fit(SYSTEM, [said(ROLE_USER, "Hi")], [passage("r", 1)], QUESTION, transcript, 1)
    assert sent[:3] == [*SYSTEM, QUESTION, asking("b")]
    assert result_texts(sent[3:]) == ["y" * 600 + "\n[... 4200 characters left out ...]\n" + "y" * 200]


def test_a_picture_counts_as_a_vendor_counts_it_and_not_by_its_bytes() -> None:
    picture = Part(image=Image(media_type="image/png", data=b"x" * 700_000))
    assert context.tokens_of(Message(role=ROLE_USER, parts=[picture])) < 2000


def repeated(text: str, times: int) -> str:
    return text * times


texts = st.builds(repeated, st.text(max_size=5), st.integers(0, 900))
histories = st.lists(st.builds(said, st.sampled_from([ROLE_USER, ROLE_ASSISTANT]), texts), max_size=6)
passages = st.lists(st.builds(passage, st.sampled_from(["", "a", "b"]), st.floats(0, 1), texts), max_size=5)


@st.composite
def transcripts(draw: st.DrawFn) -> list[Message]:
    """Draws rounds of calls; some calls have no result, and results may take several messages."""
    messages: list[Message] = []
    for number in range(draw(st.integers(0, 6))):
        names = [f"c{number}_{index}" for index in range(draw(st.integers(0, 3)))]
        messages.append(asking(*names))
        messages += [answering(**{name: draw(texts)}) for name in names if draw(st.booleans())]
    return messages


@settings(max_examples=150)
@given(histories, passages, transcripts(), st.integers(0, 6000))
def test_whatever_is_said_it_fits_every_call_is_closed_and_the_order_is_kept(
    history: list[Message], found: list[Part], transcript: list[Message], budget: int
) -> None:
    before = [message.SerializeToString() for message in (*history, *transcript)]
    sent = context.fit(SYSTEM, history, found, QUESTION, transcript, budget)

    assert sent == context.fit(SYSTEM, history, found, QUESTION, transcript, budget)
    assert before == [message.SerializeToString() for message in (*history, *transcript)]
    at = next(index for index, message in enumerate(sent) if QUESTION.parts[0] in message.parts)
    past, question, rounds = sent[1:at], sent[at], sent[at + 1 :]
    assert sent[0] == SYSTEM[0]
    assert past == history[len(history) - len(past) :]
    left = iter(found)
    assert all(part in left for part in question.parts[:-1])
    asked = [message for message in transcript if message.role == ROLE_ASSISTANT]
    kept = [message for message in rounds if message.role == ROLE_ASSISTANT]
    assert kept == asked[len(asked) - len(kept) :]
    for message, following in zip(rounds, [*rounds, Message()][1:], strict=True):
        results = [part.tool_result.call_id for part in following.parts if part.HasField("tool_result")]
        if message.role == ROLE_ASSISTANT:
            assert results == [call.call_id for call in calls_of(message)]
    least = not past and len(question.parts) == 1 and len(kept) <= 1
    assert total(sent) <= budget or least
    if total(sent) > budget:
        assert all(len(text) <= 900 for text in result_texts(rounds))
