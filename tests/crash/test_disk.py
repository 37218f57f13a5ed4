"""A full disk: turns are refused with a reason, and no acknowledged turn is lost once there is room again."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import tempfile
import uuid
from collections.abc import Generator
from pathlib import Path

import grpc.aio
import pytest
from tests.flow.mesh import Mesh
from tests.flow.test_turns import chain, spec

from agentshell.mesh import errors
from kfm.error.v1 import error_pb2
from kfm.turn.v1 import turn_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import TURN_STATE_COMPLETED
from kfm.turn.v1.turn_service_pb2_grpc import TurnServiceStub
from xenocomm import Client, XenocommError

_DISK = "size=224m,mode=755"
_BLOCK_BYTES = 1024 * 1024
_MOST_TURNS = 400
_TEXT = "What is a turn? " * 8000  # 128 KB, to use up what Postgres has preallocated quickly.
_CALL_SECONDS = 30.0
_RECOVERY_SECONDS = 60.0


@pytest.fixture
def disk() -> Generator[Path]:
    """The mount point of a small disk."""
    with tempfile.TemporaryDirectory(prefix="as-") as name:
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", _DISK, "none", name], check=False).returncode:  # noqa: S607
            pytest.skip("only root can mount a small disk; run this test as root where mounting is allowed")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)  # noqa: S607


@pytest.mark.timeout(240)
async def test_a_full_disk_refuses_turns_and_loses_none_that_it_acknowledged(disk: Path) -> None:
    mesh = Mesh(disk, "", {}, separate=False)
    try:
        await mesh.start()
        await mesh.wait_for_knowledge()
        acknowledged: list[str] = []
        async with mesh.client("acme") as client:
            acknowledged += [await create(client) for _ in range(5)]
            ballast = disk / "ballast"
            fill(ballast)
            refused = await create_until_refused(client, acknowledged)
        assert refused.code in errors.TRANSIENT_CODES
        assert refused.reason in (error_pb2.ERROR_REASON_LOG_UNAVAILABLE, error_pb2.ERROR_REASON_DATABASE_UNAVAILABLE)
        ballast.unlink()
        async with mesh.client("acme") as client:
            acknowledged.append(await create_when_possible(client))
            for turn_id in acknowledged:
                async for _ in client.watch(turn_id):
                    pass
                assert (await client.get(turn_id)).state == TURN_STATE_COMPLETED
    finally:
        await mesh.stop()


def fill(ballast: Path) -> None:
    """Fills the disk completely."""
    with ballast.open("wb", buffering=0) as file:
        for size in (_BLOCK_BYTES, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


async def create(client: Client) -> str:
    request = pb.CreateTurnRequest(request_id=uuid.uuid4().hex, turn=spec(_TEXT, plan=chain(3)))
    return (await TurnServiceStub(client.channel).CreateTurn(request, timeout=_CALL_SECONDS)).turn.turn_id


async def create_until_refused(client: Client, acknowledged: list[str]) -> errors.AgentShellError:
    for _ in range(_MOST_TURNS):
        try:
            acknowledged.append(await create(client))
        except grpc.aio.AioRpcError as failed:
            return errors.of(failed)
    raise AssertionError("the disk was full, and every turn was acknowledged")


async def create_when_possible(client: Client) -> str:
    async with asyncio.timeout(_RECOVERY_SECONDS):
        while True:
            try:
                return await create(client)
            except (grpc.aio.AioRpcError, XenocommError):
                await asyncio.sleep(0.1)
