"""A member of a mesh for the service suites: a real server, real credentials, and helpers to call it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from agentshell.mesh import errors
from agentshell.mesh.call import OPERATOR
from agentshell.mesh.config import ServerConfig
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.server import Server


class Member:
    """A server on free addresses: give it services by `server.add`, then `start` it."""

    def __init__(self, directory: Path) -> None:
        self.mesh_address = f"unix:{directory}/m.sock"
        self.mesh_key_file = directory / "mesh.key"
        self.keyring = Keyring(directory / "keys.json", self.mesh_key_file)
        self.server = Server(ServerConfig(address="127.0.0.1:0"), self.mesh_address, self.keyring)

    async def start(self) -> grpc.aio.Channel:
        """Serves, and returns a client's channel, which the caller closes."""
        await self.server.start()
        await self.server.ready()
        return grpc.aio.insecure_channel(self.server.address)

    def key(self, tenant_id: str = "acme") -> tuple[tuple[str, str]]:
        """Returns the metadata for a tenant's calls."""
        return (("authorization", f"Bearer {self.keyring.create(tenant_id, 'ann')}"),)

    def operator(self) -> tuple[tuple[str, str]]:
        """Returns the metadata for an operator's calls, valid for half a minute."""
        return (("authorization", f"Bearer {self.keyring.mint(OPERATOR)}"),)


@asynccontextmanager
async def member() -> AsyncGenerator[Member]:
    """Yields a member with no service yet, and stops it at the end."""
    with tempfile.TemporaryDirectory(prefix="as-") as directory:  # A socket's path must be short.
        made = Member(Path(directory))
        try:
            yield made
        finally:
            await made.server.stop(0)


async def refusal(answer: Awaitable[object]) -> AgentShellError:
    """Returns the error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return errors.of(caught.value)
