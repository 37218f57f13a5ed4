"""What runs where: the one place where parts are wired together.

Each service has a module that builds it from the configuration. A process imports only the modules of its own services:
importing what the others depend on would take up to half of its startup.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from agentshell.topology.parts import Member, Parts

# In starting order; they stop in reverse. `manager` and `worker` are the two halves of `runtime`.
SERVICES: Sequence[str] = ("memory", "provider", "personality", "tool", "worker", "manager", "runtime", "gateway")
# What a process runs by default.
WHOLE: Sequence[str] = [name for name in SERVICES if name not in ("worker", "manager")]


async def build(service: str, parts: Parts) -> Member:
    """Builds one of `SERVICES` with the `build` function of the module named after it."""
    return await importlib.import_module(f"{__name__}.{service}").build(parts)
