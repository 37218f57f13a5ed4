"""What expressions can see and yield."""

import pytest
from tests.unit.turn.driver import noop, says

from agentshell.content import fill, text_of
from agentshell.turn import expression
from kfm.content.v1.content_pb2 import Message, Part, Passage, Text, ToolResult
from kfm.turn.v1 import turn_pb2 as t


def turn() -> t.Turn:
    """Returns a turn with a step that said JSON, a tool's answer, a memory step's hits, and a step not begun yet."""
    told = t.Turn(turn_id="T", input=Message(parts=[Part(text=Text(text="hello"))]))
    told.plan.steps.extend([noop(f"T/{name}", state=t.STEP_STATE_SUCCEEDED) for name in ("said", "tool", "memory")])
    said, tool, memory = told.plan.steps
    said.result.CopyFrom(says('{"n": 3, "items": ["a", "b"]}'))
    tool.result.output.parts.add(tool_result=ToolResult(call_id="c"))
    fill(tool.result.output.parts[0].tool_result.output, {"celsius": 21.5})
    memory.result.output.parts.add(passage=Passage(title="T", text="words", source_uri="a.md"))
    told.plan.steps.append(noop("T/later"))
    return told


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("input", "hello"),
        ("item.name", "x"),
        ("outputs.said.json.n", 3),
        ("outputs.said.json.items.map(i, i + '!')", ["a!", "b!"]),
        ("outputs.tool.json.celsius > 20.0", True),
        ("outputs.memory.passages[0].text", "words"),
        ("outputs.said.state", "SUCCEEDED"),
        ("has(outputs.later)", False),
        ("{'all': [outputs.said.json.n, null]}", {"all": [3, None]}),
    ],
)
def test_an_expression_sees_the_input_the_item_and_what_has_begun(source: str, value: object) -> None:
    step = noop("T/x", input=source)
    fill(step.item, {"name": "x"})
    assert expression.problem(source) == ""
    assert expression.subject(turn(), step) == value


def test_an_error_does_not_repeat_an_output_however_long() -> None:
    long = turn()
    long.plan.steps[0].result.CopyFrom(says("x" * 900_000))
    with pytest.raises(ValueError, match="has no value here: KeyError") as caught:
        expression.subject(long, noop("T/x", input="{'a': 1}[outputs.said.text]"))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "source",
    ["outputs.later.text", "outputs.said.json.n / 0", "timestamp('2026-01-01T00:00:00Z')", "b'x'", "1.0 / 0.0"],
)
def test_what_has_no_value_or_none_of_json_is_an_error_that_says_so(source: str) -> None:
    with pytest.raises(ValueError, match="has no value here"):
        expression.subject(turn(), noop("T/x", input=source))


def test_a_condition_must_be_true_or_false() -> None:
    assert expression.holds(turn(), noop("T/x"))
    assert not expression.holds(turn(), noop("T/x", condition="outputs.said.json.n > 3"))
    with pytest.raises(ValueError, match="is not true or false, but 3"):
        expression.holds(turn(), noop("T/x", condition="outputs.said.json.n"))


def test_a_step_works_on_its_input_else_its_item_else_what_was_asked() -> None:
    step = noop("T/x")
    assert text_of(expression.input_of(turn(), step)) == "hello"
    fill(step.item, [1, "b"])
    assert text_of(expression.input_of(turn(), step)) == '[1, "b"]'
    step.input = "outputs.said.json.items[0]"
    assert text_of(expression.input_of(turn(), step)) == "a"
