"""A pack's settings for its turns, and its own cases, over a whole mesh."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.flow.conftest import environment_for
from tests.flow.test_cli import agentshell
from tests.flow.test_engine import asks_for, over, states
from tests.flow.test_turns import run, spec
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Call, Reply

from agentshell.content import text_of
from agentshell.personality import sample
from kfm.turn.v1.turn_pb2 import NoopStep, Plan, Step
from xenocomm import Client

_CASES = """\
cases:
  - {name: adds, input: What is 1 + 1?, tools: [calculator], contains: [two]}
  - {name: stays calm, input: Hello?, tools: [], not_contains: [panic], matches: ["^Calm"]}
"""


@pytest.mark.parametrize(("personality", "answer"), [("methodical", "second go"), ("methodical@1.0.0", "first go")])
async def test_a_turn_does_what_its_pack_plans_in_the_version_that_is_asked_for(
    client: Client, personality: str, answer: str
) -> None:
    turn = over(await run(client, spec("go", personality_id=personality)))
    assert list(states(turn)) == ["begin", "end"]
    assert (turn.personality_id, text_of(turn.output)) == ("methodical", answer)


async def test_a_plan_of_the_caller_comes_before_that_of_the_pack(client: Client) -> None:
    own = Plan(steps=[Step(step_id="own", noop=NoopStep())])
    turn = over(await run(client, spec("go", personality_id="methodical", plan=own)))
    assert list(states(turn)) == ["own"]


async def test_a_packs_own_cases_are_asked_and_compared(vendor: OpenAIChatServer, tmp_path: Path) -> None:
    for path, text in sample.files("calm").items():
        (tmp_path / "calm" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "calm" / path).write_text(text.replace("enabled: false", "enabled: true"))
    (tmp_path / "calm" / "tests" / "cases.yaml").write_text(_CASES)
    vendor.script = [
        asks_for(Call("c1", "calculator", ('{"expression": "1 + 1"}',))),
        Reply(texts=("Two.",)),
        Reply(texts=("No panic.",)),
    ]
    ended = await agentshell(
        *("packs", "test", str(tmp_path / "calm"), "--provider", "openai"),
        data_dir=tmp_path,
        environment=environment_for(vendor),
    )
    assert (ended.code, ended.err) == (1, "")
    lines = ended.out.splitlines()
    assert lines[0] == "calm@0.1.0"
    assert [(line.split()[-1], "passed" in line) for line in lines[2:4]] == [
        ("calculator", True),
        (lines[3].split()[-1], False),
    ]
    assert lines[4:] == [
        "stays calm: contains 'panic'",
        "stays calm: does not match '^Calm'",
        "stays calm: the answer: No panic.",
    ]
