"""Fixtures for the flow tests: each test runs over one process, and over one process for each service."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from tests.conftest import create_database
from tests.flow.ledger import Ledger
from tests.flow.mesh import Mesh
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Fault, Reply, VendorServer

from xenocomm import Client


@pytest.fixture(scope="session")
async def vendor_process() -> AsyncGenerator[OpenAIChatServer]:
    """A model vendor's HTTP server, for turns that must take a while or fail."""
    async with OpenAIChatServer() as server:
        yield server


@pytest.fixture(scope="session")
def ledger() -> Generator[Ledger]:
    """The outside world."""
    with Ledger() as ledger:
        yield ledger


@pytest.fixture
def vendor(vendor_process: OpenAIChatServer) -> OpenAIChatServer:
    """The vendor, reset to working order."""
    vendor_process.reply, vendor_process.fault = Reply(), Fault()
    vendor_process.requests.clear()
    vendor_process.script.clear()
    vendor_process.forget_hang_ups()
    return vendor_process


@pytest.fixture(scope="session", params=["embedded", "separate"])
async def mesh(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_url: str,
    vendor_process: OpenAIChatServer,
    ledger: Ledger,
) -> AsyncGenerator[Mesh]:
    """A running mesh: all services in one process, or each in its own."""
    mesh = Mesh(
        tmp_path_factory.mktemp("mesh"),
        await create_database(postgres_url),
        environment_for(vendor_process, ledger),
        separate=request.param == "separate",
    )
    try:
        await mesh.start()
        await mesh.wait_for_knowledge()
        yield mesh
    finally:
        await mesh.stop()


def environment_for(vendor: VendorServer, ledger: Ledger | None = None) -> dict[str, str]:
    """Returns the variables that point a mesh at the vendor, the tests' packs and the ledger."""
    directories = [str(Path(__file__).parents[2] / "personalities"), str(Path(__file__).parent / "packs")]
    return {
        "AGENTSHELL_PROVIDER__VENDORS__OPENAI__ADAPTER": "openai_chat",
        "AGENTSHELL_PROVIDER__VENDORS__OPENAI__BASE_URL": f"{vendor.url}/v1",
        "OPENAI_API_KEY": "sk-test",
        "AGENTSHELL_PERSONALITY__DIRECTORIES": json.dumps(directories),
        "AGENTSHELL_RUNTIME__HTTP_HOSTS": json.dumps([ledger.host] if ledger else []),
    }


@pytest.fixture
async def client(mesh: Mesh) -> AsyncGenerator[Client]:
    """A client of this test's own tenant."""
    async with mesh.client(f"t-{uuid.uuid4().hex[:12]}") as client:
        yield client
