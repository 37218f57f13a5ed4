"""The tools of a pack, read from their source without running it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.personality import pack, tool_file
from agentshell.personality.tool_file import ToolFunction
from agentshell.personality.yaml_file import PackError

MANIFEST = b"""id: crafty
version: 1.0.0
name: N
description: D
system_prompt: {template_file: prompt.md}
tools:
  enabled: true
  exposed_tools: [clock, forecast]
abilities:
  http_hosts: ["api.example.com"]
"""
WEATHER = '''
import os
from typing import Annotated, Literal, Optional
raise SystemExit("it was run")

def _helper(x): ...

async def forecast(
    city: Annotated[str, "Such as Vienna."],
    days: int = 3,
    *,
    unit: Literal["C", "F"] = "C",
    near: list[dict[str, float]] | None = None,
    other: Optional[bool] = None,
) -> dict[str, str]:
    """Tells the weather.

    For some days.
    """
'''


def files(**more: str) -> dict[str, bytes]:
    return {"manifest.yaml": MANIFEST, "prompt.md": b"Help.", "tools/weather.py": WEATHER.encode()} | {
        path: text.encode() for path, text in more.items()
    }


def refusal(text: dict[str, bytes]) -> str:
    with pytest.raises(PackError) as caught:
        pack.parse(text)
    return str(caught.value)


def test_a_signature_and_a_docstring_are_the_tools_contract_and_nothing_is_run() -> None:
    read = pack.parse(files())

    assert read.tools == (
        ToolFunction(
            name="forecast",
            module="tools.weather",
            description="Tells the weather.\n\nFor some days.",
            input_schema={
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Such as Vienna."},
                    "days": {"type": "integer", "default": 3},
                    "unit": {"enum": ["C", "F"], "default": "C"},
                    "near": {
                        "anyOf": [
                            {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "number"}}},
                            {"type": "null"},
                        ]
                    },
                    "other": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
            output_schema={"type": "object", "additionalProperties": {"type": "string"}},
        ),
    )
    assert read.tool_files == {"tools/weather.py": WEATHER}
    assert read.manifest.tools.names == ("clock", "forecast")
    assert read.manifest.abilities.http_hosts == ("api.example.com",)


def test_a_pack_without_tools_of_its_own_carries_no_code() -> None:
    plain = files() | {"manifest.yaml": MANIFEST.replace(b", forecast", b"")}

    assert (pack.parse(plain).tools, pack.parse(plain).tool_files) == ((), {})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "forecast(",
            "weather(",
            "manifest.yaml:8: tools.exposed_tools: 'forecast' is not a function of tools/*.py, an operation",
        ),
        ("_helper(x)", "clock(x)", "tools/weather.py:6: clock has no docstring; say what it does"),
        ('    """Tells', '    x = """Tells', "tools/weather.py:8: forecast has no docstring; say what it does, for a"),
        ("days: int", "days", "tools/weather.py:10: days has no type; annotate it"),
        ("days: int", "days: bytes", "tools/weather.py:10: 'bytes' has no JSON Schema; the known types are str, int,"),
        ("days: int", "days: dict[int, str]", "tools/weather.py:10: dict[(int, str)] has no JSON Schema"),
        ("days: int", f"days: {'list[' * 9}int{']' * 9}", "tools/weather.py:10: a type nested deeper than 8 levels"),
        ("    *,\n", "    /,\n", "tools/weather.py:9: city: a model passes arguments by name; name each"),
        ("    *,\n", "    *rest: int,\n", "tools/weather.py:11: rest: a model passes arguments by name; name each"),
        ("import os", "import os os", "tools/weather.py:2: not Python: invalid syntax; fix the line"),
        ("import os", f"x = {'(' * 300}{')' * 300}", "tools/weather.py:2: not Python: too many nested parentheses"),
        ("import os", "x = " + "-" * 5000 + "1", "tools/weather.py: too complex to read; write it more simply"),
        ("import os", f"# {'x' * 300_000}", "tools: its Python files have more than 262144 bytes; shorten them"),
    ],
)
def test_what_is_wrong_with_a_tool_is_named_with_its_line_and_its_fix(old: str, new: str, expected: str) -> None:
    assert old in WEATHER
    assert refusal(files(**{"tools/weather.py": WEATHER.replace(old, new)})).startswith(expected)


def test_a_name_is_one_tools_alone() -> None:
    assert refusal(files(**{"tools/b.py": WEATHER, "tools/a.py": WEATHER})).startswith(
        "tools/b.py:8: 'forecast' is also in tools/a.py; rename one"
    )
    clock = 'def clock() -> str:\n    "Tells."\n'
    assert refusal(files(**{"tools/clock.py": clock})) == (
        "manifest.yaml:8: tools.exposed_tools: 'clock' is a built-in tool and a function of the pack; rename one"
    )


@settings(max_examples=150)
@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["def f", "(", ")", ":", "\n", " ", "x", "list[", "]", "'"])).map("".join)
)
def test_no_source_whatever_breaks_the_reader(source: str) -> None:
    try:
        tool_file.find({"tools/x.py": source}, ["f"])
    except PackError:
        return  # This is the only error it may raise.
