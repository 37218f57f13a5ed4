"""A mesh that has enough to do."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from tests.conftest import create_database
from tests.flow.conftest import environment_for
from tests.flow.mesh import Mesh
from tests.flow.test_inputs import asks, end_of, waits
from tests.flow.test_turns import asking_vendor, create, passes, spec, wait_for_text
from tests.vendors.openai_server import OpenAIServer
from tests.vendors.vendor_server import Fault

from xenocomm import XenocommError


async def test_more_turns_than_may_be_open_are_refused_for_a_while_and_repeats_are_not(
    tmp_path: Path, postgres_url: str, vendor: OpenAIServer
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
            await create(client, asking_vendor(), "second")
            with pytest.raises(XenocommError) as caught:
                await client.ask("One more?")
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert caught.value.retry_delay is not None
            assert await create(client, asking_vendor(), "first") == first
            turn_id = await create(other, spec(plan=passes(("a",))))
            assert (await end_of(other, turn_id)).HasField("output")
    finally:
        await mesh.stop()
