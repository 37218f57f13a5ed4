"""A short exploration of each layout; `make crash` is the long one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from tests.contract.log_stores import NEEDS_IGGY
from tests.crash.explorer import explore
from tests.crash.faulty_mesh import LAYOUTS

SEED, KILLS = 7, 9


@pytest.mark.timeout(600)
@pytest.mark.parametrize("log", ["postgres", pytest.param("iggy", marks=NEEDS_IGGY)])
async def test_kills_at_boundaries_and_at_random_lose_nothing_and_double_nothing(log: str) -> None:
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        tally = await explore(Path(directory), SEED, KILLS, log=log)
    assert tally.faults == []
    assert tally.kills.total() >= KILLS
    assert tally.missed < KILLS // 2, "boundaries were not met, so little was tested"
    assert tally.turns >= len(LAYOUTS)
