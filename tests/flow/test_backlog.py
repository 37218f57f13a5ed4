"""A mesh at its limit of open turns."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from tests.conftest import create_database
from tests.flow.conftest import environment_for
from tests.flow.mesh import Mesh
from tests.flow.test_inputs import asks, end_of, waits
from tests.flow.test_turns import WAIT_SECONDS, asking_vendor, create, passes, spec, wait_for_text
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Fault

from agentshell.mesh import errors
from kfm.turn.v1.turn_pb2 import ParentStep
from xenocomm import Client, XenocommError


async def admitted(client: Client, request_id: str) -> None:
    """Creates a turn as a client would: the open turns are counted with a delay, so it waits as told and retries."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                await create(client, asking_vendor(), request_id)
            except grpc.aio.AioRpcError as error:
                retry_delay = errors.of(error).retry_delay
                assert retry_delay is not None
                await asyncio.sleep(retry_delay.total_seconds())
            else:
                return


async def test_more_turns_than_may_be_open_are_refused_for_a_while_and_repeats_are_not(
    tmp_path: Path, postgres_url: str, vendor: OpenAIChatServer
) -> None:
    environment = {**environment_for(vendor), "AGENTSHELL_RUNTIME__MAX_OPEN_TURNS_PER_TENANT": "2"}
    mesh = Mesh(tmp_path, await create_database(postgres_url), environment, separate=False)
    await mesh.start()
    try:
        async with mesh.client("busy") as client, mesh.client("idle") as other:
            await waits(client, asks())
            vendor.fault = Fault(stall_after=3)
            first = await create(client, asking_vendor(), "first")
            await wait_for_text(client, first)
            await admitted(client, "second")
            with pytest.raises(XenocommError) as caught:
                await client.ask("One more?")
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert caught.value.retry_delay is not None
            below = asking_vendor(parent=ParentStep(turn_id=first, step_id=f"{first}/answer", depth=1))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await create(client, below, "below")
            assert errors.of(refused.value).name == "OVERLOADED", "anybody can say that a turn waits for this one"
            assert await create(client, asking_vendor(), "first") == first
            turn_id = await create(other, spec(plan=passes(("a",))))
            assert (await end_of(other, turn_id)).HasField("output")
    finally:
        await mesh.stop()
