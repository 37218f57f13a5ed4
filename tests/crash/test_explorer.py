"""A short exploration of each layout; `make crash` is the long one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from tests.crash.explorer import LOGS, explore
from tests.crash.faulty_mesh import LAYOUTS

SEED, KILLS = 7, 12


@pytest.mark.timeout(600)
@pytest.mark.parametrize("log", LOGS)
async def test_kills_at_boundaries_and_at_random_lose_nothing_and_double_nothing(log: str) -> None:
    if log == "iggy" and not os.environ.get("AGENTSHELL_TEST_IGGY"):
        pytest.skip("AGENTSHELL_TEST_IGGY names no Iggy server, such as iggy://iggy:iggy@127.0.0.1:8090")
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        tally = await explore(Path(directory), SEED, KILLS, log=log)
    assert tally.faults == []
    assert tally.kills.total() >= KILLS
    assert tally.missed < KILLS // 2, "boundaries were not met, so little was tested"
    assert tally.turns >= len(LAYOUTS)
