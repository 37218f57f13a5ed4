"""An answer is the same whenever its deltas are taken, and they add up to it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.provider.adapters.adapter import Deltas
from agentshell.provider.adapters.answer import Answer
from kfm.content.v1.content_pb2 import Usage
from kfm.provider.v1 import provider_service_pb2 as pb

Pieces = Sequence[tuple[str, str]]
# An answer's pieces: kind, or the index of the tool call, and text; `take` takes the deltas up to there.
PIECES = st.lists(st.tuples(st.sampled_from(["text", "reasoning", "0", "1", "used", "take"]), st.sampled_from("ab")))


def grow(answer: Answer, kind: str, text: str) -> None:
    match kind:
        case "text":
            answer.text(text)
        case "reasoning":
            answer.reasoning(text)
        case "used":
            answer.used(Usage(output_tokens=1))
        case index:
            answer.call(int(index), f"id-{index}", f"tool-{index}", text)


def read(deltas: Deltas) -> list[tuple[str, str]]:
    """Returns deltas as pieces of one letter each."""
    found: list[tuple[str, str]] = []
    for delta in deltas:
        match delta.WhichOneof("kind"):
            case "tool_call":
                found += [(str(delta.tool_call.index), letter) for letter in delta.tool_call.arguments_json]
            case "usage":
                found.append(("used", ""))
            case kind:
                found += [(str(kind), letter) for letter in delta.text + delta.reasoning]
    return found


@settings(max_examples=100)
@given(PIECES)
def test_deltas_say_in_order_what_came_whenever_they_are_taken(pieces: Pieces) -> None:
    answer, deltas = Answer("openai"), Deltas()

    for kind, text in pieces:
        if kind == "take":
            deltas += answer.take()
        else:
            grow(answer, kind, text)
    deltas += answer.take()

    came = [(kind, "" if kind == "used" else text) for kind, text in pieces if kind != "take"]
    assert read(deltas) == came
    named = [delta.tool_call.call_id for delta in deltas if delta.tool_call.call_id]
    assert named == [f"id-{kind}" for kind in dict.fromkeys(kind for kind, _ in came) if kind in "01"]
    assert answer.take() == []


def test_what_follows_on_its_like_is_one_delta_with_it() -> None:
    answer = Answer("openai")
    for kind, text in (("text", "a"), ("text", "b"), ("0", ""), ("0", "{}"), ("text", "c")):
        grow(answer, kind, text)

    call = pb.ToolCallDelta(index=0, call_id="id-0", name="tool-0", arguments_json="{}")
    assert answer.take() == [
        pb.GenerationDelta(text="ab"),
        pb.GenerationDelta(tool_call=call),
        pb.GenerationDelta(text="c"),
    ]
