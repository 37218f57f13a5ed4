"""Plans that models write: the instructions to the model, and the parsing of its answer. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentshell.content import fill, plain
from agentshell.schema import Schema
from agentshell.turn import plan
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.provider.v1.provider_service_pb2 import ToolDefinition
from kfm.turn.v1.turn_pb2 import AgentStep, MemoryStep, ModelChoice, ModelStep, Plan, Step, ToolStep

MAX_STEPS = 12
_MAX_PROBLEMS = 8
_MAX_OBJECTS = 16  # How many braces to try as the start of the plan.

_TEXT = {"type": "string", "minLength": 1, "maxLength": 8192}
_REQUIRED = {"model": "instructions", "tool": "tool", "memory": "query", "agent": "personality"}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["steps"],
    "additionalProperties": False,
    "properties": {
        "steps": {
            "type": "array",
            "maxItems": MAX_STEPS,
            "items": {
                "type": "object",
                "required": ["id", "kind"],
                "additionalProperties": False,
                "properties": {
                    "id": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"},
                    "needs": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                    "kind": {"enum": list(_REQUIRED)},
                    "input": {"type": "string", "maxLength": 1024},
                    "instructions": _TEXT,
                    "tool": _TEXT,
                    "arguments": {"type": "object"},
                    "query": _TEXT,
                    "personality": _TEXT,
                    "question": _TEXT,
                },
                "allOf": [
                    {"if": {"properties": {"kind": {"const": kind}}}, "then": {"required": [field]}}
                    for kind, field in _REQUIRED.items()
                ],
            },
        }
    },
}
_DRAFT = Schema(SCHEMA)

_INSTRUCTIONS = """\
Do not answer the user yet: write the plan by which the answer is found. Say one JSON object and nothing else. It \
matches this JSON Schema:
{schema}
A step starts when the steps in its "needs" have ended. Kinds of steps:
- model: a language model does what "instructions" say; it sees the outputs of the steps it needs.
- tool: "tool" is called with "arguments".
- memory: what is known about "query" is looked up.
- agent: another personality answers "question". Only one that you were told of by name.
"input" is a CEL expression over the outputs of the steps that a step needs, such as outputs['find'].text. What it \
yields is what a model or an agent works on instead of the user's message; for a tool it is an object that adds to \
the arguments, such as {{'text': outputs['find'].text}}.
Afterwards a model answers the user from the outputs of the steps that no other needs. A plan without steps is right \
where nothing has to be found out first.
Tools:
{tools}"""

_REFERENCE = re.compile(r"""\boutputs\s*(?:\[\s*(?:'([^']*)'|"([^"]*)")\s*\]|\.\s*(\w+))""")


def instructions(tools: Sequence[ToolDefinition]) -> str:
    """Returns the instructions for a model that is to write a plan."""
    schemas = [json.dumps(plain(tool.input_schema), sort_keys=True) for tool in tools]  # The same in any process.
    listed = [f"- {t.name}: {t.description} Arguments: {schema}" for t, schema in zip(tools, schemas, strict=True)]
    return _INSTRUCTIONS.format(schema=json.dumps(SCHEMA), tools="\n".join(listed) or "none")


def mend(problems: Sequence[str]) -> Message:
    """Returns the message that asks a model to correct its plan."""
    said = "\n".join(f"- {problem}" for problem in problems)
    text = f"That plan cannot be run:\n{said}\nSay the whole plan again, mended: one JSON object and nothing else."
    return Message(role=ROLE_USER, parts=[Part(text=Text(text=text))])


def parse(text: str) -> Any:
    """Returns the first JSON object in a text, ignoring what surrounds it. Raises ValueError."""
    decoder = json.JSONDecoder()
    for start in [match.start() for match in re.finditer(r"\{", text)][:_MAX_OBJECTS]:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    raise ValueError("there is no JSON object in the answer")


def problems(draft: Any, tools: Sequence[ToolDefinition], max_steps: int) -> list[str]:
    """Returns the first few problems of a parsed plan, for the model to correct."""
    found = list(_form_problems(draft))
    if not found:
        found = list(_sense_problems(draft["steps"], {tool.name: tool for tool in tools}, max_steps))
        found += [f"{field}: {text}" for field, text in plan.problems(plan_of(draft, ModelChoice(), ""))]
    return found[:_MAX_PROBLEMS]


def plan_of(draft: Any, model: ModelChoice, prefix: str) -> Plan:
    """Returns the plan of a draft that matches the schema; its model steps use `model`.

    `prefix` is what expressions need before its steps' names.
    """
    names = {written["id"] for written in draft["steps"]}
    made = Plan(plan_id="written")
    for written in draft["steps"]:
        step = made.steps.add(step_id=written["id"], depends_on=written.get("needs", ()))
        step.input = _REFERENCE.sub(lambda match: _renamed(match, names, prefix), written.get("input", ""))
        _fill_kind(step, written, model)
    return made


def _fill_kind(step: Step, written: Any, model: ModelChoice) -> None:
    match written["kind"]:
        case "model":
            step.model.CopyFrom(ModelStep(model=model, instructions=written["instructions"]))
        case "tool":
            step.tool.CopyFrom(ToolStep(name=written["tool"]))
            fill(step.tool.arguments, written.get("arguments", {}))
        case "memory":
            step.memory.CopyFrom(MemoryStep(query=written["query"]))
        case _:
            step.agent.CopyFrom(AgentStep(personality_id=written["personality"]))
            if question := written.get("question"):
                asked = Message(role=ROLE_USER, parts=[Part(text=Text(text=question))])
                step.agent.input.CopyFrom(asked)


def _form_problems(draft: Any) -> Iterator[str]:
    yield from (told.removeprefix("$.") for told in _DRAFT.problems(draft))


def _sense_problems(steps: Sequence[Any], tools: Mapping[str, ToolDefinition], max_steps: int) -> Iterator[str]:
    if len(steps) > max_steps:
        yield f"steps: there are {len(steps)}, the limit is {max_steps}"
    for index, written in enumerate(steps):
        where = f"steps[{index}]"
        for match in _REFERENCE.finditer(written.get("input", "")):
            if (name := _referred(match)) not in written.get("needs", ()):
                yield f"{where}.input: {name!r} is not among the step's needs"
        if written["kind"] == "agent" and "question" in written and "input" in written:
            yield f"{where}: an agent takes a question or an input, not both"
        if written["kind"] != "tool":
            continue
        if written["tool"] not in tools:
            yield f"{where}.tool: there is no tool {written['tool']!r}; the tools are: {', '.join(tools) or 'none'}"
        elif "input" not in written:  # Its value is not known before the step starts.
            schema = plain(tools[written["tool"]].input_schema)
            for told in Schema(schema).problems(written.get("arguments", {})):
                yield f"{where}.arguments{told.removeprefix('$')}"


def _renamed(match: re.Match[str], names: set[str], prefix: str) -> str:
    name = _referred(match)
    return f"outputs['{prefix}{name}']" if name in names else match[0]


def _referred(match: re.Match[str]) -> str:
    return match[1] or match[2] or match[3] or ""
