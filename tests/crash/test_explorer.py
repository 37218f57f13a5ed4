"""A few kills at random instants; `make crash` makes many."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.crash.explorer import explore

SEED, KILLS = 7, 5


async def test_kills_at_random_instants_lose_nothing_and_double_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        explorer = await explore(Path(directory), SEED, KILLS)
    assert explorer.faults == []
    assert explorer.acknowledged, "nothing was acknowledged, so nothing was tested"
