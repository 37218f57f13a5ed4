"""Rare lookups: one serves all concurrent callers; it is repeated when old, or after a failure."""

from __future__ import annotations

import asyncio

import pytest

from agentshell.gateway import recent as recent_module
from agentshell.gateway.recent import Recent


class Looks:
    """Counts the lookups; with `failing`, the first one fails."""

    def __init__(self, *, failing: bool = False) -> None:
        self.count = 0
        self._failing = failing

    async def look(self) -> int:
        self.count += 1
        await asyncio.sleep(0)
        if self._failing and self.count == 1:
            raise OSError("not now")
        return self.count


@pytest.mark.parametrize(("kept_seconds", "found"), [(1000.0, [1, 1, 1, 1]), (0.0, [1, 2, 3, 4])])
async def test_it_is_looked_up_once_as_long_as_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, kept_seconds: float, found: list[int]
) -> None:
    monkeypatch.setattr(recent_module, "_KEPT_SECONDS", kept_seconds)
    recent = Recent(Looks().look)
    assert [*await asyncio.gather(*(recent.get() for _ in range(3))), await recent.get()] == found


async def test_a_look_that_failed_is_not_kept() -> None:
    looks = Looks(failing=True)
    recent = Recent(looks.look)
    with pytest.raises(OSError, match="not now"):
        await recent.get()
    assert (await recent.get(), looks.count) == (2, 2)
