"""What happens to a plan that a model writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from agentshell.runtime.steps import draft
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.provider.v1.provider_service_pb2 import ToolDefinition
from kfm.turn.v1.turn_pb2 import AgentStep, MemoryStep, ModelChoice, ModelStep, Plan, Step, ToolStep

GPT = ModelChoice(provider="openai", model="gpt-x")
CALCULATOR = ToolDefinition(name="calculator", description="Works things out.")
CALCULATOR.input_schema.update(
    {"type": "object", "required": ["expression"], "properties": {"expression": {"type": "string"}}}
)
FIND = {"id": "find", "kind": "memory", "query": "onions"}
CALL = {"id": "sum", "kind": "tool", "tool": "calculator", "arguments": {"expression": "1 + 1"}}


def written(*steps: Any) -> dict[str, Any]:
    return {"steps": list(steps)}


def test_a_plan_of_all_kinds_becomes_steps() -> None:
    calculate = {"id": "sum", "kind": "tool", "tool": "calculator"}
    sum_up = {"id": "sum-up", "kind": "model", "needs": ["find", "sum"], "instructions": "Sum up."}
    judge = {"id": "judge", "kind": "agent", "needs": ["sum-up"], "personality": "critic"}
    given = written(
        FIND,
        {**calculate, "needs": ["find"], "input": "{'expression': outputs.find.text}"},
        {**sum_up, "input": "outputs['find'].text + outputs[\"sum\"].text"},
        {**judge, "question": "Is it right?"},
    )
    asked = Message(role=ROLE_USER, parts=[Part(text=Text(text="Is it right?"))])
    assert draft.problems(given, [CALCULATOR], 4) == []
    assert draft.plan_of(given, GPT, "plan#") == Plan(
        plan_id="written",
        steps=[
            Step(step_id="find", memory=MemoryStep(query="onions")),
            Step(
                step_id="sum",
                depends_on=["find"],
                tool=ToolStep(name="calculator", arguments=Struct()),
                input="{'expression': outputs['plan#find'].text}",
            ),
            Step(
                step_id="sum-up",
                depends_on=["find", "sum"],
                model=ModelStep(model=GPT, instructions="Sum up."),
                input="outputs['plan#find'].text + outputs['plan#sum'].text",
            ),
            Step(step_id="judge", depends_on=["sum-up"], agent=AgentStep(personality_id="critic", input=asked)),
        ],
    )


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ['$: "steps" is a required property']),
        ([], ['$: [] is not of type "object"']),
        (written({"id": "a", "kind": "x"}), ['steps[0].kind: "x" is not one of "model", "tool" or 2 other candidates']),
        (written({"id": "a", "kind": "tool"}), ['steps[0]: "tool" is a required property']),
        (written({**FIND, "id": "a b"}), ['steps[0].id: "a b" does not match "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"']),
        (written(FIND, CALL, {**FIND, "id": "c"}), ["steps: there are 3, the limit is 2"]),
        (written({**CALL, "tool": "fetch"}), ["steps[0].tool: there is no tool 'fetch'; the tools are: calculator"]),
        (written({**CALL, "arguments": {}}), ['steps[0].arguments: "expression" is a required property']),
        (written({**CALL, "input": "outputs['find']"}), ["steps[0].input: 'find' is not among the step's needs"]),
        (written({**CALL, "needs": ["find"]}), ["plan.steps[0].depends_on: 'find' is not a step of the plan"]),
        (written(FIND, FIND), ["plan.steps[1].step_id: 'find' is already the id of another step"]),
        (
            written({**FIND, "needs": ["sum"]}, {**CALL, "needs": ["find"]}),
            [f"plan.steps: '{name}' depends on itself, through other steps" for name in ("find", "sum")],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_plan_is_said(given: Any, found: list[str]) -> None:
    assert draft.problems(given, [CALCULATOR], 2) == found


def test_an_expression_that_cannot_be_read_is_named() -> None:
    [problem] = draft.problems(written({**CALL, "input": "1 +"}), [CALCULATOR], 2)
    assert problem.startswith("plan.steps[0].input: ")


def test_no_more_problems_are_said_than_a_model_can_mend_at_once() -> None:
    assert len(draft.problems(written(*[{"id": "a"}] * 12), [], 12)) == 8


def test_a_plan_without_steps_is_a_plan() -> None:
    assert draft.problems(written(), [], 0) == []
    assert draft.plan_of(written(), GPT, "plan#") == Plan(plan_id="written")


@pytest.mark.parametrize(
    "around", ["{}", "```json\n{}\n```", "Here {{it}} is:\n{}\nThat {{is}} all.", '{{"steps": [\n{}']
)
def test_a_plan_is_found_in_whatever_stands_around_it(around: str) -> None:
    assert draft.parse(around.format(json.dumps(written(FIND)))) == written(FIND)


@pytest.mark.parametrize("text", ["", "I cannot.", "{" * 100_000, '{"steps": [}'])
def test_words_without_a_plan_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        draft.parse(text)


def test_a_model_is_told_the_schema_and_the_tools() -> None:
    told = draft.instructions([CALCULATOR])
    assert json.dumps(draft.SCHEMA) in told
    schema = '{"properties": {"expression": {"type": "string"}}, "required": ["expression"], "type": "object"}'
    assert f"- calculator: Works things out. Arguments: {schema}" in told
    assert draft.instructions([]).endswith("Tools:\nnone")
