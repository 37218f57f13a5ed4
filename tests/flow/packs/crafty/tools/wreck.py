"""A hostile tool."""

import asyncio
from pathlib import Path


async def wreck(how: str) -> str:
    """Reads a file that it must not, or never ends."""
    if how == "read":
        return Path("/etc/passwd").read_text()  # noqa: ASYNC240 - as a stranger's code would
    await asyncio.sleep(3600)
    return "done"
