"""Runs schedules by the million: `python -m tests.simulation --examples 1000000 --processes 2`."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from random import Random

from tests.simulation.world import World

from kfm.turn.v1.turn_pb2 import TurnState

_CHUNK = 500


def run(seed: int) -> World:
    """Runs the schedule of a seed."""
    random = Random(seed)  # noqa: S311 - repeatable, not secret
    world = World(random, one_owner=seed % 4 == 0)
    world.run()
    return world


def run_all(seeds: Iterable[int]) -> tuple[Counter[str], list[str]]:
    """Returns counts of what happened, and the schedules that broke an invariant."""
    counts, broken = Counter[str](), list[str]()
    for seed in seeds:
        try:
            world = run(seed)
        except Exception as error:
            broken.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        counts["schedules"] += 1
        counts["events"] += len(world.log.events)
        counts["events that changed nothing"] += world.log.has_changed.count(False)
        counts["effects"] += len(world.effects)
        for fold in world.log.folds.values():
            counts["turns"] += 1
            counts[TurnState.Name(fold.turn.state).removeprefix("TURN_STATE_").lower()] += 1
    return counts, broken


def main() -> None:
    """Runs the schedules that the arguments name, prints counts, and fails if one broke an invariant."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first schedule")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    chunks = [
        range(first, min(first + _CHUNK, given.seed + given.examples))
        for first in range(given.seed, given.seed + given.examples, _CHUNK)
    ]
    total, broken, began = Counter[str](), list[str](), time.monotonic()
    with ProcessPoolExecutor(given.processes) as pool:
        for counts, failures in pool.map(run_all, chunks):
            total += counts
            broken += failures
    for name, count in sorted(total.items()):
        print(f"{count:>12,} {name}")
    print(f"{len(broken):>12,} broken")
    print(f"{given.examples / (time.monotonic() - began):>12,.0f} schedules/s")
    print("\n".join(broken[:20]))
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
