"""Turns that ask for input, through the client: who may answer, which answer counts, and what follows."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.flow.mesh import Mesh
from tests.flow.test_engine import over, states
from tests.flow.test_turns import create, spec

from agentshell.content import text_of
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_pb2 import (
    ON_FAILURE_CONTINUE,
    TURN_STATE_CANCELLED,
    TURN_STATE_COMPLETED,
    TURN_STATE_FAILED,
    TURN_STATE_WAITING,
    ApprovalStep,
    NoopStep,
    Plan,
    Step,
    Turn,
)
from xenocomm import Client, XenocommError


def asks(**approval: Any) -> Plan:
    """Returns a plan that asks for input, and passes the answer on."""
    return Plan(
        steps=[
            Step(step_id="ask", approval=ApprovalStep(question="Shall I?", **approval)),
            Step(step_id="do", depends_on=["ask"], noop=NoopStep(), input="'did: ' + outputs.ask.text"),
        ]
    )


async def waits(client: Client, plan: Plan) -> str:
    """Starts a turn and returns its id once it waits."""
    turn_id = await create(client, spec(plan=plan))
    async for update in client.watch(turn_id):
        if update.event.HasField("turn_waiting"):
            break
    return turn_id


async def end_of(client: Client, turn_id: str) -> Turn:
    return over([update async for update in client.watch(turn_id)])


async def why_not(answer: Awaitable[None]) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(XenocommError) as caught:
        await answer
    return caught.value.code, caught.value.reason, caught.value.message


async def test_a_turn_waits_for_the_answer_and_goes_on_with_it(client: Client) -> None:
    turn_id = await waits(client, asks(choices=["yes", "no"]))
    assert (await client.get(turn_id)).state == TURN_STATE_WAITING
    code, reason, message = await why_not(client.provide_input(turn_id, f"{turn_id}/ask", "maybe"))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "'maybe' is not one of" in message
    await client.provide_input(turn_id, f"{turn_id}/ask", "yes")
    turn = await end_of(client, turn_id)
    assert (turn.state, text_of(turn.output)) == (TURN_STATE_COMPLETED, "did: yes")
    await client.provide_input(turn_id, f"{turn_id}/ask", "yes")
    code, reason, message = await why_not(client.provide_input(turn_id, f"{turn_id}/ask", "no"))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TURN_STATE")
    assert "already been answered" in message


async def test_only_who_is_asked_may_answer_and_the_first_answer_counts(mesh: Mesh) -> None:
    tenant_id = f"t-{uuid.uuid4().hex[:12]}"
    async with (
        mesh.client(tenant_id) as ann,
        Client.connect(mesh.endpoints.address, mesh.key(tenant_id, "bob"), timeout_seconds=40) as bob,
    ):
        turn_id = await waits(ann, asks(principal_ids=["bob", "eve"]))
        _, reason, message = await why_not(ann.provide_input(turn_id, f"{turn_id}/ask", "yes"))
        assert reason == "PERMISSION_DENIED"
        assert message.endswith("bob, eve may")
        await bob.provide_input(turn_id, f"{turn_id}/ask", "yes")
        assert text_of((await end_of(ann, turn_id)).output) == "did: yes"
        _, reason, _ = await why_not(ann.provide_input(turn_id, f"{turn_id}/ask", "yes"))
        assert reason == "TURN_STATE", "the same words of somebody else are no repeat"


async def test_an_answer_that_nobody_gives_in_time_fails_the_step(client: Client) -> None:
    plan = asks(wait=Duration(nanos=200_000_000))
    turn_id = await create(client, spec(plan=plan))
    turn = await end_of(client, turn_id)
    assert turn.state == TURN_STATE_FAILED
    assert turn.failure.cause.reason == error_pb2.ERROR_REASON_INPUT_EXPIRED
    assert (await why_not(client.provide_input(turn_id, f"{turn_id}/ask", "yes")))[1] == "TURN_STATE"
    plan.steps[0].on_failure = ON_FAILURE_CONTINUE
    plan.steps[1].input = "'nobody answered'"
    turn = await end_of(client, await create(client, spec(plan=plan)))
    assert (turn.state, text_of(turn.output)) == (TURN_STATE_COMPLETED, "nobody answered")


async def test_a_turn_that_waits_can_be_cancelled(client: Client) -> None:
    turn_id = await waits(client, asks())
    await client.cancel(turn_id, "never mind")
    turn = await end_of(client, turn_id)
    assert turn.state == TURN_STATE_CANCELLED
    assert (await why_not(client.provide_input(turn_id, f"{turn_id}/ask", "yes")))[1] == "TURN_STATE"


async def test_a_fork_shares_what_was_answered_and_asks_the_rest_anew(client: Client) -> None:
    plan = asks()
    plan.steps.append(Step(step_id="again", depends_on=["do"], approval=ApprovalStep(question="Sure?")))
    plan.steps.append(Step(step_id="end", depends_on=["again"], noop=NoopStep(), input="input + outputs.again.text"))
    turn_id = await waits(client, plan)
    await client.provide_input(turn_id, f"{turn_id}/ask", "yes")
    forked = await client.fork(turn_id, f"{turn_id}/ask", text="Instead: ")
    async for update in client.watch(forked.turn_id):
        if update.event.HasField("turn_waiting"):
            break
    await client.provide_input(forked.turn_id, f"{forked.turn_id}/again", "no")
    turn = await end_of(client, forked.turn_id)
    assert text_of(turn.output) == "Instead: no"
    assert states(turn) == dict.fromkeys(("ask", "do", "again", "end"), "SUCCEEDED")
    assert text_of(turn.plan.steps[1].result.output) == "did: yes"
    await client.cancel(turn_id)
