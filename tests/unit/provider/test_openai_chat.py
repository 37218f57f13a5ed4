"""What chunks of Chat Completions become, in each form that servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from agentshell.provider.adapters.openai_chat import ChatGrowth
from kfm.provider.v1 import provider_service_pb2 as pb

FINISH = {"choices": [{"finish_reason": "tool_calls"}]}


def grown(*deltas: dict[str, Any]) -> pb.GenerateResponse:
    growth = ChatGrowth(pb.Generation(), "groq", "m")
    for event in (*({"choices": [{"delta": delta}]} for delta in deltas), FINISH):
        growth.read(event)
    assert growth.is_whole
    return growth.finish()


def piece(arguments: str = "", name: str = "", **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{**fields, "function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(
    "deltas",
    [
        # OpenAI's form.
        [
            piece("", "a", index=0, id="1"),
            piece('{"n":1}', index=0),
            piece("", "b", index=1, id="2"),
            piece("{}", index=1),
        ],
        # Indices that begin at 1, ids and names in every piece.
        [piece('{"n"', "a", index=1, id="1"), piece(":1}", "a", index=1, id="1"), piece("{}", "b", index=2, id="2")],
        # One index for all.
        [piece('{"n":1}', "a", index=0, id="1"), piece("{}", "b", index=0, id="2")],
        # No index, each call whole.
        [piece('{"n":1}', "a", id="1"), piece("{}", "b", id="2")],
        # No index, in pieces.
        [piece('{"n":', "a", id="1"), piece("1}"), piece("", "b", id="2")],
    ],
)
def test_tool_calls_are_told_apart(deltas: list[dict[str, Any]]) -> None:
    calls = [part.tool_call for part in grown(*deltas).message.parts]

    assert [(call.call_id, call.name, dict(call.arguments)) for call in calls] == [("1", "a", {"n": 1}), ("2", "b", {})]


def test_calls_without_ids_get_some_that_no_other_turn_has() -> None:
    deltas = piece("{}", "a"), piece("{}", "b")
    ids = [part.tool_call.call_id for answer in (grown(*deltas), grown(*deltas)) for part in answer.message.parts]

    assert len(set(ids)) == 4


def test_reasoning_has_many_forms() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}
    blocks = {"content": [thinking, {"type": "text", "text": "So."}]}

    for deltas in (
        [{"reasoning": "Hm"}, {"content": "So."}],
        [{"reasoning_content": "Hm", "content": "So."}],
        [blocks],
    ):
        parts = grown(*deltas).message.parts

        assert [(part.reasoning.text, part.text.text) for part in parts] == [("Hm", ""), ("", "So.")]


def test_usage_that_repeats_is_told_once() -> None:
    growth = ChatGrowth(pb.Generation(), "vllm", "m")
    event: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}

    told: list[int] = []
    for _ in range(2):
        growth.read(event)
        told.append(len(growth.answer.take()))

    assert told == [1, 0]
