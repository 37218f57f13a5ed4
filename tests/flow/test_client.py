"""What the client sends on its caller's behalf, over one process and over many."""

from __future__ import annotations

import pytest
from tests.flow.test_engine import over
from tests.flow.test_turns import chain

from kfm.turn.v1.turn_pb2 import TURN_STATE_FAILED, NoopStep, Plan, Step, TurnLimits
from xenocomm import Client, XenocommError


async def test_a_caller_gives_a_plan_and_narrower_limits(client: Client) -> None:
    said = Plan(steps=[Step(step_id="say", noop=NoopStep(), input="'said: ' + input")])
    answer = await client.ask("Hello", plan=said)
    assert answer.text == "said: Hello"
    with pytest.raises(XenocommError) as caught:
        await client.ask("Hello", plan=chain(3), limits=TurnLimits(max_steps=2))
    assert caught.value.reason == "STEP_LIMIT"
    forked = await client.fork(answer.turn_id, plan=chain(3), limits=TurnLimits(max_steps=2))
    turn = over([update async for update in client.watch(forked.turn_id)])
    assert (turn.state, turn.limits.max_steps) == (TURN_STATE_FAILED, 2)
