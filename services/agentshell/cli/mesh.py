"""The mesh that a command talks to: where it is, and the key for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agentshell.cli.ending import USAGE, ending, fail

if TYPE_CHECKING:
    import grpc.aio

    from agentshell.mesh.config import Config
    from xenocomm import Client

KEY_VARIABLE = "AGENTSHELL_API_KEY"
_GRACE_SECONDS = 30.0  # How long a turn's answer may take to arrive after the turn's own limit.
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a mesh is. `api_key` is empty if none was found; `key_origin` says where it was looked for.

    `tls` holds the credentials to call it with; None means without TLS.
    """

    address: str
    tls: grpc.ChannelCredentials | None
    api_key: str
    key_origin: str
    timeout_seconds: float


def load_config(config_file: Path | None, data_dir: Path | None, **sections: dict[str, Any]) -> Config:
    """Returns the configuration, overridden by the values from the command line that are not empty."""
    from agentshell.mesh import config

    overrides: dict[str, Any] = {
        name: {key: value for key, value in keys.items() if value} for name, keys in sections.items()
    }
    if data_dir is not None:
        overrides["data_dir"] = data_dir
    return config.load(config_file, os.environ, overrides)


def find(config: Config, address: str = "", key_file: Path | None = None) -> Target:
    """Returns the mesh to talk to: the one named, else the one of the data directory, else the configured one.

    Raises CONFIG_INVALID for unusable TLS files.
    """
    from agentshell.mesh import data_directory, tls

    if not address:
        with contextlib.suppress(OSError, ValueError):
            written = data_directory.endpoints_file(config.data_dir).read_bytes()
            address = data_directory.Endpoints.model_validate_json(written).address
    if key_file is None and KEY_VARIABLE in os.environ:
        api_key, origin = os.environ[KEY_VARIABLE], KEY_VARIABLE
    else:
        file = key_file or data_directory.key_file(config.data_dir)
        api_key, origin = "", str(file)
        with contextlib.suppress(OSError):
            api_key = file.read_text()
    timeout_seconds = config.runtime.max_turn_seconds + _GRACE_SECONDS
    address = address or config.server.address
    return Target(address, tls.calling(config.tls, address), api_key.strip(), origin, timeout_seconds)


def run(work: Callable[[Client], Awaitable[_T]], address: str, key_file: Path | None, data_dir: Path | None) -> _T:
    """Runs `work` with the mesh that the options name, and returns its result. A failure ends the command."""

    async def connected() -> _T:
        async with connect(load_config(None, data_dir), address, key_file) as client:
            return await work(client)

    with ending():
        return asyncio.run(connected())


@contextlib.asynccontextmanager
async def connect(config: Config, address: str = "", key_file: Path | None = None) -> AsyncGenerator[Client]:
    """Connects to the mesh that `find` returns; ends the command if there is no key.

    Raises XenocommError, also for calls that other stubs make over the client's channel.
    """
    import grpc.aio

    from xenocomm import Client
    from xenocomm.errors import from_rpc

    target = find(config, address, key_file)
    timeout_seconds, secured = target.timeout_seconds, target.tls or False
    async with Client.connect(target.address, target.api_key, timeout_seconds=timeout_seconds, tls=secured) as client:
        if not target.api_key:
            fail(
                f"no API key in {target.key_origin}: name its file with --key-file or set {KEY_VARIABLE}; "
                "`agentshell keys create` makes one",
                USAGE,
            )
        try:
            yield client
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None


@contextlib.asynccontextmanager
async def operate(config: Config, address: str, timeout_seconds: float) -> AsyncGenerator[grpc.aio.Channel]:
    """Connects as an operator: signs with the mesh's secret, as its services do. Raises XenocommError."""
    import grpc.aio

    from agentshell.mesh import call, channel, data_directory
    from xenocomm.errors import from_rpc

    keyring = data_directory.keyring(config)
    target = find(config, address)
    async with channel.connect(target.address, keyring, target.tls) as connected:
        try:
            with call.scope(call.OPERATOR, timeout_seconds):
                yield connected
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
