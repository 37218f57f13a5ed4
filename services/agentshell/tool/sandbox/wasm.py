"""The default tier: an interpreter in WebAssembly, new for each call, in a process that has given up all rights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from agentshell.tool.sandbox import image
from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.tier import request
from agentshell.tool.sandbox.worker import Worker, unavailable

# The worker's process can import what this one can, wherever that is installed: its command line says where.
_WASM_WORKER: Final = """
import json, sys
paths, image, memory_bytes = json.loads(sys.argv[1])
sys.path += [path for path in paths if path not in sys.path]
from agentshell.tool.sandbox.wasm_worker import main
main(image, memory_bytes)
"""


class WasmTier:
    """Starts processes that make a new interpreter for each call."""

    max_calls = 512

    def __init__(self, limits: Limits, images: Path, prefix: Sequence[str] = (sys.executable, "-I")) -> None:
        """`images` is where its image is kept, `prefix` the Python command that its processes run."""
        self._limits = limits
        self._images = images
        self._prefix = prefix
        self._image = Path()

    async def open(self, tell: Callable[[str], None]) -> None:
        """Builds the image, once per machine, and tries to escape the interpreter. Raises SANDBOX_UNAVAILABLE."""
        self._image = await image.ensure(self._images, tell)
        worker = await self.start()
        try:
            probe: dict[str, Any] = {"files": {}, "module": "escape", "function": "escapes", "arguments": {}}
            said = await worker.call(request(probe, self._limits), _refuse)
        finally:
            await worker.kill()
        if said != {"said": json.dumps({"output": []})}:
            raise unavailable(f"a tool can get out of its interpreter: {said}")

    async def start(self) -> Worker:
        """Starts a process."""
        arguments = json.dumps([sys.path, str(self._image), self._limits.memory_bytes])
        return await Worker.start((*self._prefix, "-c", _WASM_WORKER, arguments))


async def _refuse(name: str, _arguments: str) -> dict[str, Any]:
    return {"error": f"{name} is not available yet"}
