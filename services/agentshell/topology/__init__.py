"""What runs where: the one place in which parts meet.

A file for each service builds it from the configuration. A process imports those of its own services alone: what the
others stand on would take up to half of its start to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from agentshell.topology.parts import Member, Parts

# In the order in which they begin; they end in the reverse order. `manager` and `worker` are `runtime` taken apart.
SERVICES: Sequence[str] = ("memory", "provider", "personality", "tool", "worker", "manager", "runtime", "gateway")
# What a process runs by default.
WHOLE: Sequence[str] = [name for name in SERVICES if name not in ("worker", "manager")]


async def build(service: str, parts: Parts) -> Member:
    """Builds one of `SERVICES`, by the function `build` of the file named after it."""
    return await importlib.import_module(f"{__name__}.{service}").build(parts)
