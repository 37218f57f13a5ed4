"""Kills a mesh at every boundary of its journal and at random instants, and checks all its guarantees.

`python -m tests.crash.explorer --seed 1 --kills 1000` (or `make crash KILLS=1000`) is the long form of
`test_explorer.py`; `--log iggy` keeps the log on the server that AGENTSHELL_TEST_IGGY names. It first counts the
boundaries that a script of turns meets in each layout of processes; then, for each boundary, it runs the script again
and kills the process there. Half the time it kills it once more during recovery. Every third run, and every run once
all boundaries are hit, is a storm: kills at random instants, a faulty log, a clock that jumps.
The seed decides what is hit; each fault is printed with what is needed to repeat its run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from tests.conftest import create_database
from tests.crash import checks, shots
from tests.crash.faulty_mesh import EMBEDDED, LAYOUTS, FaultyMesh, Layout
from tests.crash.page import BOUNDARIES, FAULTS
from tests.crash.shots import Shot, Weather
from tests.crash.workload import SORTS, Run, Vendor, World, script
from tests.flow.conftest import environment_for
from tests.flow.ledger import Ledger

from agentshell.db.server import PostgresServer
from xenocomm import Client

_RUN_SECONDS = 240.0
_LINGER_SECONDS = 1.5  # Covers work done once a second.
_RECOVERY_SECONDS = 0.5
_MONTH_SECONDS = 30 * 24 * 3600  # No time limit is reached when the clock jumps.
_STORM_EVERY = 3  # runs
_CALM = Weather()


@dataclass
class Tally:
    """Counts of what was done, and the faults found."""

    kills: Counter[str] = field(default_factory=Counter[str])
    faults_made: Counter[str] = field(default_factory=Counter[str])
    missed: int = 0  # Kills at the end of a run, which met the boundary less often than when counted.
    boundaries: int = 0  # All that were counted,
    boundaries_hit: int = 0  # and those that were aimed at.
    turns: int = 0
    effects: int = 0
    calls: int = 0
    faults: list[str] = field(default_factory=list[str])

    def add(self, other: Tally) -> None:
        """Adds another tally to this one."""
        self.kills += other.kills
        self.faults_made += other.faults_made
        self.missed += other.missed
        self.boundaries += other.boundaries
        self.boundaries_hit += other.boundaries_hit
        self.turns += other.turns
        self.effects += other.effects
        self.calls += other.calls
        self.faults += other.faults

    def __str__(self) -> str:
        counted = [f"{count:6} {name}" for name, count in (*self.kills.most_common(), *self.faults_made.most_common())]
        summary = (
            f"{self.kills.total()} kills: at {self.boundaries_hit} of {self.boundaries} boundaries"
            f" ({self.missed} of which did not come again: at the end of the script), then at any instant;"
            f" {self.turns} turns, {self.effects} effects in {self.calls} calls, {len(self.faults)} faults"
        )
        return "\n".join([*counted, *self.faults, summary])


class Explorer:
    """Explores one layout. Create with `open`."""

    def __init__(self, mesh: FaultyMesh, ledger: Ledger, seed: int) -> None:
        self.mesh = mesh
        self.tally = Tally()
        self.counts: Mapping[str, Mapping[str, int]] = {}
        self._ledger = ledger
        self._random = Random(f"{seed} {mesh.layout.name}")  # noqa: S311 - repeatable
        self._seed = seed
        self._runs = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, layout: Layout, directory: Path, seed: int, log: str = "postgres") -> AsyncGenerator[Explorer]:
        """Opens an explorer of a running mesh in `directory`, with its log in one of `LOGS`."""
        async with Vendor() as vendor, contextlib.AsyncExitStack() as stack:
            ledger = stack.enter_context(World())
            environment = environment_for(vendor, ledger) | {
                "AGENTSHELL_RUNTIME__DEFAULT_TURN_SECONDS": str(_MONTH_SECONDS),
                "AGENTSHELL_RUNTIME__MAX_TURN_SECONDS": str(_MONTH_SECONDS),
                "AGENTSHELL_RUNTIME__STEP_SECONDS": str(_MONTH_SECONDS),
                "AGENTSHELL_RUNTIME__APPROVAL_WAIT_SECONDS": str(_MONTH_SECONDS),
                "AGENTSHELL_RUNTIME__DEFAULT_ATTEMPTS": "10",
                **LOGS[log](),
            }
            if layout is not EMBEDDED:  # The embedded mesh's own Postgres dies with it; the shared one survives.
                server = await PostgresServer.start(directory / "shared")
                stack.push_async_callback(server.stop)
                environment["AGENTSHELL_DATABASE__URL"] = await create_database(server.url)
            mesh = await stack.enter_async_context(FaultyMesh.open(layout, directory, environment, seed))
            explorer = cls(mesh, ledger, seed)
            await explorer._restart()
            yield explorer
            explorer.tally.effects = len(ledger.effects)
            explorer.tally.calls = ledger.calls.total()

    async def count(self) -> None:
        """Runs the script without kills and counts the boundaries; twice, because the first run also warms up."""
        for _ in range(2):
            run, key = self._begin()
            for page in self.mesh.pages.values():
                page.arm()
            await self._undisturbed(run, key)
            await self._check(run, key, "with nobody killed")
            await asyncio.sleep(_LINGER_SECONDS)
        self.counts = {name: page.counts for name, page in self.mesh.pages.items()}

    async def explore(self, kills: int) -> None:
        """Makes about `kills` kills (0: until every boundary is hit); every third run is a storm with random kills."""
        await self.count()
        targets = shots.sweep(self.counts, self._random)
        self.tally.boundaries = len(targets)
        while self.tally.kills.total() < kills or (targets and not kills):
            is_calm = targets and self._runs % _STORM_EVERY
            weather = _CALM if is_calm else shots.storm(self._random)
            self.tally.boundaries_hit += bool(is_calm)
            first = targets.pop(0) if is_calm else shots.instant(self.mesh.pages, self._random)
            again = [shots.instant(self.mesh.pages, self._random)] if self._random.random() < 0.5 else []
            await self.fire([first, *again], weather)

    async def fire(
        self, volley: Sequence[Shot], weather: Weather = _CALM, *, sorts: Collection[str] = tuple(SORTS)
    ) -> None:
        """Runs the script once: kills it at the first shot, its recovery at each later one, and checks the outcome."""
        run, key = self._begin(sorts)
        name = f"seed {self._seed}, {self.mesh.layout.name}, run {self._runs}: {[*volley]}, {weather}"
        jumping = asyncio.create_task(self._jump(weather.jumps))
        try:
            async with asyncio.timeout(_RUN_SECONDS):
                self._set_faults(weather.faults_per_mille)
                await self._shoot(volley[0], self._undisturbed(run, key))
                for shot in volley[1:]:
                    await self._shoot(shot, self._recovery())
                self._set_faults(0)
                for page in self.mesh.pages.values():
                    page.arm()
                await self._restart()
                await self._check(run, key, name)
        except Exception as error:
            self._found([f"{name}: {type(error).__name__}: {error}"])
            await self.mesh.kill()
            await self._restart()
        finally:
            jumping.cancel()

    async def _restart(self) -> None:
        if not await self.mesh.start():
            raise RuntimeError(f"the mesh does not start:\n{self.mesh.errors}")

    def _found(self, faults: Sequence[str]) -> None:
        self.tally.faults += faults
        for fault in faults:
            print(fault, file=sys.stderr)

    def _begin(self, sorts: Collection[str] = tuple(SORTS)) -> tuple[Run, str]:
        self._runs += 1
        run = Run(f"t{self._runs}", script(self._ledger, sorts))
        return run, self.mesh.key(run.tenant_id)

    def _set_faults(self, faults_per_mille: int) -> None:
        for page in self.mesh.pages.values():
            page.faults_per_mille = faults_per_mille

    async def _jump(self, jumps: Sequence[tuple[float, int]]) -> None:
        """Makes the clock jump at the given times, in all processes, since they share one machine."""
        for delay, clock_seconds in jumps:
            await asyncio.sleep(delay)
            for page in self.mesh.pages.values():
                page.clock_seconds = clock_seconds

    async def _shoot(self, shot: Shot, work: Coroutine[None, None, None]) -> None:
        """Kills during the work, or at its end if the boundary was not met."""
        for name, page in self.mesh.pages.items():
            page.arm(shot.boundary if name == shot.process else "", shot.nth)
        working, killed = asyncio.create_task(work), asyncio.create_task(self.mesh.killed())
        try:
            await asyncio.wait(
                {working, killed}, timeout=shot.seconds or _RUN_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if shot.boundary and not killed.done():
                await asyncio.wait({killed}, timeout=_LINGER_SECONDS)
            if await self.mesh.kill(shot.process):
                self.tally.missed += bool(shot.boundary)
        finally:
            working.cancel()
            killed.cancel()
            for page in self.mesh.pages.values():
                self.tally.faults_made.update({name: page.counts.get(name, 0) for name in FAULTS})
            await asyncio.gather(working, killed, return_exceptions=True)  # Calls cut off by the kill are no fault.
        self.tally.kills[shot.kind] += 1

    async def _undisturbed(self, run: Run, key: str) -> None:
        """Runs the script to its end."""
        async with self.mesh.client(key) as client:
            await run.drive(client)
            await asyncio.gather(*(_end_of(client, asked.turn_id) for asked in run.asked))

    async def _recovery(self) -> None:
        if await self.mesh.start():
            await asyncio.sleep(_RECOVERY_SECONDS)

    async def _check(self, run: Run, key: str, name: str) -> None:
        async with self.mesh.client(key) as client:
            faults = await checks.lost(client, run)
            await run.drive(client)
            faults += run.faults + await checks.all_of(client, run, self._ledger)
        self.tally.turns += len(run.asked)
        self._found([f"{name}: {fault}" for fault in faults])


def _iggy() -> dict[str, str]:
    """Returns the variables that put the log in a new stream on the tests' Iggy server."""
    url = urlsplit(os.environ["AGENTSHELL_TEST_IGGY"])._replace(path=f"/crash-{uuid.uuid4().hex}")
    return {"AGENTSHELL_LOG__DRIVER": "iggy", "AGENTSHELL_LOG__URL": url.geturl()}


# Places for the log, and the variables that put it there.
LOGS: Mapping[str, Callable[[], dict[str, str]]] = {"postgres": dict, "iggy": _iggy}


async def _end_of(client: Client, turn_id: str) -> None:
    async for _ in client.watch(turn_id):
        pass


async def explore(
    directory: Path, seed: int, kills: int, layouts: Sequence[Layout] = LAYOUTS, log: str = "postgres"
) -> Tally:
    """Explores the layouts concurrently, each with its share of the kills."""
    total = Tally()

    async def part(layout: Layout) -> None:
        place = directory / layout.name
        place.mkdir()
        async with Explorer.open(layout, place, seed, log) as explorer:
            await explorer.explore(-(-kills // len(layouts)))
        total.add(explorer.tally)

    await asyncio.gather(*(part(layout) for layout in layouts))
    return total


async def _repeat(directory: Path, seed: int, layout: Layout, shot: Shot, times: int, log: str) -> Tally:
    """Kills one layout at one boundary, `times` times."""
    async with Explorer.open(layout, directory, seed, log) as explorer:
        await explorer.count()
        for _ in range(times):
            await explorer.fire([shot])
    return explorer.tally


def main() -> None:
    """Runs from the command line; exits with 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100, help="0: until every boundary is hit once")
    parser.add_argument("--layout", choices=[layout.name for layout in LAYOUTS], help="only this one")
    parser.add_argument("--log", choices=LOGS, default="postgres")
    parser.add_argument("--boundary", choices=BOUNDARIES, help="only this one, of --layout")
    parser.add_argument("--nth", type=int, default=1, help="how often it is met before the kill")
    parser.add_argument("--process", default="mesh", help="whose boundary it is")
    arguments = parser.parse_args()
    chosen = [layout for layout in LAYOUTS if arguments.layout in (None, layout.name)]
    with tempfile.TemporaryDirectory(prefix="as-") as name:
        if arguments.boundary:
            shot = Shot(arguments.process, arguments.boundary, arguments.nth)
            work = _repeat(Path(name), arguments.seed, chosen[0], shot, arguments.kills, arguments.log)
        else:
            work = explore(Path(name), arguments.seed, arguments.kills, chosen, arguments.log)
        tally = asyncio.run(work)
    print(tally)
    raise SystemExit(bool(tally.faults))


if __name__ == "__main__":
    main()
