"""The escape battery: escapes that strangers' code tries, on every tier, with the platform run by root and by a user.

Zero escapes: each attempt ends in a typed error, and the next call works.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.contract.escapes import ATTEMPTS, SECRET

from agentshell.content import plain
from agentshell.mesh.config import ToolConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.tool.egress import Egress
from agentshell.tool.grant import Grant
from agentshell.tool.sandbox import image
from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.native import NativeTier
from agentshell.tool.sandbox.sandbox import Sandbox
from agentshell.tool.sandbox.wasm import WasmTier
from kfm.error.v1.error_pb2 import ErrorReason
from kfm.personality.v1 import personality_service_pb2 as pb

CONFIG = ToolConfig(max_workers=2, max_seconds=3.0, max_cpu_seconds=0.3, max_memory_mib=128, max_output_bytes=64 * 1024)
GRANT = Grant(CONFIG, "acme", "strangers", "attempt", ())
_SYSTEM_PYTHON = "/usr/bin/python3"
_AS_NOBODY = ("/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", _SYSTEM_PYTHON, "-I")


class Jail(NamedTuple):
    """A sandbox and its tier."""

    sandbox: Sandbox
    tier: pb.SandboxTier.ValueType


async def run(jail: Jail, source: str, **arguments: Any) -> Any:
    """Calls `attempt` in a tool with this source."""
    code = pb.ToolCode(files={"tools/attempt.py": source}, tier=jail.tier)
    function = pb.ToolFunction(module="tools.attempt")
    function.tool.name = "attempt"
    return plain(await jail.sandbox.run(GRANT, code, function, arguments, lambda _said: None))


@pytest.fixture(scope="module")
def images() -> Generator[Path]:
    """A directory with the image that everybody can read."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        built = image.build(image.default_directory())
        for file in (built, built.with_suffix(".sha256")):
            shutil.copy(file, directory / file.name)
        yield directory


def _are_there(*programs: str) -> bool:
    return all(map(shutil.which, programs))


@pytest.fixture(scope="module", params=["wasm, run by root", "wasm, run by a user", "native"])
async def jail(request: pytest.FixtureRequest, images: Path) -> AsyncGenerator[Jail]:
    """Each tier. The native tier never runs as root: it drops root first."""
    which, is_root = request.param, os.getuid() == 0
    if which == "wasm, run by root" and not is_root:
        pytest.skip("only root can run it as root")
    if which == "native" and not _are_there("bwrap", _SYSTEM_PYTHON):
        pytest.skip("bubblewrap, or an interpreter of the system, is not installed")
    prefix = _AS_NOBODY if which == "wasm, run by a user" and is_root else (sys.executable, "-I")
    if prefix is _AS_NOBODY and not _are_there(_AS_NOBODY[0], _SYSTEM_PYTHON):
        pytest.skip("setpriv, or an interpreter that another user can read, is not installed")
    limits, tier = Limits.of(CONFIG), pb.SANDBOX_TIER_NATIVE if which == "native" else pb.SANDBOX_TIER_WASM
    made = NativeTier(limits, _SYSTEM_PYTHON) if which == "native" else WasmTier(limits, images, prefix)
    sandbox = Sandbox(Egress(CONFIG, {}), {tier: made})
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setenv(SECRET, "secret")
        file.write(b"secret")
        file.flush()
        os.set_inheritable(file.fileno(), True)
        yield Jail(sandbox, tier)
    await sandbox.close()


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_an_attempt_ends_in_a_typed_error_and_the_next_call_works(jail: Jail, name: str) -> None:
    source, reasons = ATTEMPTS[name]

    with pytest.raises(AgentShellError) as caught:
        print("escaped with", await run(jail, source))

    assert caught.value.reason in reasons, (
        caught.value.name,
        caught.value.message,
        [ErrorReason.Name(r) for r in reasons],
    )
    assert await run(jail, "def attempt(x): return x + 1", x=41) == 42
