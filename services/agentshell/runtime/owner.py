"""The owner of some partitions: folds their turns, decides, has steps run, and writes down what came of it.

One loop, fed by one inbox: records of the log, results of steps, timers. It handles all that waits at once and writes
it with the decisions that follow in one append, so that a step costs one durable commit; what is written then begins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import DecodeError

from agentshell.log.dead_letter import bury
from agentshell.log.log import Ack, Lease, Log, Record, StoredRecord
from agentshell.mesh import telemetry
from agentshell.mesh.config import RuntimeConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.telemetry import TURN_SECONDS, TURNS_ACTIVE
from agentshell.runtime.history import History
from agentshell.runtime.request import step_request
from agentshell.runtime.schedule import Schedule
from agentshell.runtime.worker import Worker
from agentshell.turn import envelope
from agentshell.turn.decision import decide, expire, restart
from agentshell.turn.records import record_of, stamp
from agentshell.turn.state import apply, is_over
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT
from kfm.error.v1 import error_pb2
from kfm.event.v1.event_pb2 import EventHeader
from kfm.turn.v1.turn_event_pb2 import TurnEvent, TurnRequested
from kfm.turn.v1.turn_pb2 import TURN_STATE_CANCELLING, TURN_STATE_REQUESTED, Turn, TurnState

_log = structlog.get_logger("agentshell.manager")

_POLL_RECORDS = 500
_POLL_SECONDS = 30.0
_BATCHES_AHEAD = 2
_COMMIT_SECONDS = 1.0
_APPEND_DELAYS_SECONDS = (0.05, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class _OpenTurn:
    """A turn that is not over, or over and not yet in its session's history."""

    partition: int
    offset: int
    requested: TurnRequested
    header: EventHeader  # of its newest event
    deadline: float
    turn: Turn = field(default_factory=Turn)
    timer: asyncio.TimerHandle | None = None
    interrupted: bool = False  # Its steps under way are nobody's: another owner began them.
    concluded: bool = False


@dataclass(frozen=True, slots=True)
class _Expired:
    turn_id: str


@dataclass(frozen=True, slots=True)
class _Remembered:
    turn_id: str


_Item = list[StoredRecord] | TurnEvent | _Expired | _Remembered | Exception
_News = list[tuple[_OpenTurn, TurnEvent]]


class Owner:
    """Owns the partitions of `lease` until that is over. `run` raises what ends it; the next owner folds them anew."""

    def __init__(self, log: Log, lease: Lease, worker: Worker, history: History, config: RuntimeConfig) -> None:
        self._log = log
        self._lease = lease
        self._worker = worker
        self._history = history
        self._config = config
        self._inbox: asyncio.Queue[_Item] = asyncio.Queue()
        self._ahead = asyncio.Semaphore(_BATCHES_AHEAD)
        self._turns: dict[str, _OpenTurn] = {}
        self._schedule = Schedule(config.max_active_turns)
        self._touched: dict[str, _OpenTurn] = {}
        self._written: set[tuple[int, int]] = set()  # our own records: known already when they are read
        self._positions: dict[int, int] = {}
        self._replaying: dict[int, int] = {}  # partition -> where what was there at the start ends
        self._committed: dict[int, int] = {}
        self._commit_time = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Folds what is there, goes on with it, and serves what comes. Raises FENCED and LOG_UNAVAILABLE."""
        self._committed = await self._log.committed(envelope.TURNS, self._lease.group)
        ends = await self._log.end_offsets(envelope.TURNS)
        for partition in self._lease.partitions:
            self._positions[partition] = self._committed.get(partition, 0)
            if self._positions[partition] < ends[partition]:
                self._replaying[partition] = ends[partition]
        self._spawn(self._feed())
        try:
            while True:
                await self._handle(await self._take())
                if time.monotonic() - self._commit_time >= _COMMIT_SECONDS:
                    await self._commit()
        finally:
            self._close()

    async def _feed(self) -> None:
        try:
            while True:
                await self._ahead.acquire()
                self._inbox.put_nowait(await self._log.poll(self._lease, _POLL_RECORDS, _POLL_SECONDS))
        except Exception as error:
            self._inbox.put_nowait(error)

    async def _take(self) -> list[_Item]:
        items: list[_Item] = []
        if self._inbox.empty() and self._progress():
            try:
                async with asyncio.timeout(_COMMIT_SECONDS):
                    items.append(await self._inbox.get())
            except TimeoutError:
                await self._commit()
        if not items:
            items.append(await self._inbox.get())
        while not self._inbox.empty():
            items.append(self._inbox.get_nowait())
        return items

    async def _handle(self, items: Iterable[_Item]) -> None:
        news: _News = []
        for item in items:
            match item:
                case Exception():
                    raise item
                case list():
                    await self._fold(item)
                    self._ahead.release()
                case TurnEvent():
                    if open_turn := self._turns.get(item.turn_id):
                        self._add(open_turn, item, news)
                case _Expired():
                    self._touch(item.turn_id)
                case _Remembered():
                    self._release(item.turn_id)
        while self._touched:
            _, open_turn = self._touched.popitem()
            self._decide(open_turn, news)
        if news:
            await self._write(news)
        for open_turn, event in news:
            self._act(open_turn, event)

    async def _fold(self, records: list[StoredRecord]) -> None:
        for stored in records:
            place = (stored.partition, stored.offset)
            self._positions[stored.partition] = stored.offset + 1
            if place in self._written:
                self._written.discard(place)
            else:
                await self._fold_event(stored)
        for partition, end in list(self._replaying.items()):
            if self._positions[partition] >= end or not records:  # No records: there is nothing more to wait for.
                self._end_replay(partition)

    async def _fold_event(self, stored: StoredRecord) -> None:
        try:
            event = TurnEvent.FromString(stored.record.payload)
        except DecodeError as error:
            _log.error("undecodable record", partition=stored.partition, offset=stored.offset)
            await bury(self._log, envelope.TURNS, self._lease.group, stored, f"undecodable: {error}")
            return
        open_turn = self._turns.get(event.turn_id)
        if open_turn is None and event.HasField("turn_requested"):
            open_turn = self._open(stored, event)
        if open_turn is not None and apply(open_turn.turn, event):
            open_turn.header = event.header
            self._touch(event.turn_id)

    def _open(self, stored: StoredRecord, event: TurnEvent) -> _OpenTurn:
        requested = event.turn_requested
        seconds = requested.limits.max_duration.ToTimedelta().total_seconds()
        deadline = event.header.time.ToNanoseconds() / 1e9 + seconds
        open_turn = _OpenTurn(stored.partition, stored.offset, requested, event.header, deadline)
        open_turn.timer = asyncio.get_running_loop().call_later(
            max(0.0, deadline - time.time()), self._inbox.put_nowait, _Expired(event.turn_id)
        )
        self._turns[event.turn_id] = open_turn
        session = envelope.session_key(event.header.tenant_id, event.header.session_id)
        self._schedule.add(event.turn_id, session)
        return open_turn

    def _end_replay(self, partition: int) -> None:
        del self._replaying[partition]
        for turn_id, open_turn in self._turns.items():
            if open_turn.partition == partition:
                open_turn.interrupted = True
                self._touch(turn_id)

    def _touch(self, turn_id: str) -> None:
        if open_turn := self._turns.get(turn_id):
            self._touched[turn_id] = open_turn

    def _decide(self, open_turn: _OpenTurn, news: _News) -> None:
        turn = open_turn.turn
        if open_turn.partition in self._replaying:
            return
        if is_over(turn):
            self._conclude(open_turn)
            return
        if open_turn.interrupted:
            open_turn.interrupted = False
            for event in restart(turn):
                self._add(open_turn, stamp(event, turn.turn_id, open_turn.header), news)
        if time.time() >= open_turn.deadline and turn.state != TURN_STATE_CANCELLING:
            self._add(open_turn, stamp(expire(turn), turn.turn_id, open_turn.header), news)
            return
        if turn.state == TURN_STATE_REQUESTED and not self._schedule.begin(turn.turn_id):
            return
        TURNS_ACTIVE.set(self._schedule.active_count)
        for event in decide(turn, open_turn.requested):
            self._add(open_turn, stamp(event, turn.turn_id, open_turn.header), news)

    def _add(self, open_turn: _OpenTurn, event: TurnEvent, news: _News) -> None:
        if apply(open_turn.turn, event):
            open_turn.header = event.header
            news.append((open_turn, event))
            if not is_over(open_turn.turn):
                self._touch(event.turn_id)  # What changed is decided about again, until nothing follows.

    async def _write(self, news: _News) -> None:
        acks = await self._append([record_of(event) for _, event in news])
        if any(ack.duplicate for ack in acks):
            raise AgentShellError(error_pb2.ERROR_REASON_FENCED, "another owner of the partition decided before us")
        self._written.update((ack.partition, ack.offset) for ack in acks)

    async def _append(self, records: list[Record]) -> list[Ack]:
        """Appends, and once more with the same ids where that is not confirmed: what is there is not written twice."""
        for delay in _APPEND_DELAYS_SECONDS:
            try:
                return await self._log.append(envelope.TURNS, records)
            except AgentShellError as error:
                if error.reason != error_pb2.ERROR_REASON_LOG_UNAVAILABLE:
                    raise
            await asyncio.sleep(delay)
        return await self._log.append(envelope.TURNS, records)

    def _act(self, open_turn: _OpenTurn, event: TurnEvent) -> None:
        if event.HasField("step_scheduled"):
            self._worker.start(step_request(open_turn.turn, event, self._config), self._inbox.put_nowait)
        elif is_over(open_turn.turn):
            self._conclude(open_turn)

    def _conclude(self, open_turn: _OpenTurn) -> None:
        """Ends what a turn that is over still has under way, and has its session remember it."""
        if open_turn.concluded:
            return
        open_turn.concluded, turn = True, open_turn.turn
        _stop(open_turn.timer)
        self._worker.cancel(turn.turn_id)
        state = TurnState.Name(turn.state).removeprefix("TURN_STATE_").lower()
        TURN_SECONDS.labels(state).observe(
            turn.end_time.ToDatetime().timestamp() - turn.create_time.ToDatetime().timestamp()
        )
        trace_id = telemetry.trace_id(open_turn.header.traceparent)
        _log.info("turn over", turn_id=turn.turn_id, state=state, session_id=turn.session_id, trace_id=trace_id)
        if turn.output.role == ROLE_ASSISTANT:  # Something was answered.
            self._spawn(self._remember(open_turn))
        else:
            self._inbox.put_nowait(_Remembered(turn.turn_id))

    async def _remember(self, open_turn: _OpenTurn) -> None:
        await self._history.remember(open_turn.header.tenant_id, open_turn.turn)
        self._inbox.put_nowait(_Remembered(open_turn.turn.turn_id))

    def _release(self, turn_id: str) -> None:
        """Forgets a turn that is over and remembered; the next of its session, and one that waits, may begin."""
        if self._turns.pop(turn_id, None):
            for next_turn_id in self._schedule.remove(turn_id):
                self._touch(next_turn_id)
            TURNS_ACTIVE.set(self._schedule.active_count)

    def _progress(self) -> dict[int, int]:
        """Returns what may be committed: a partition up to its oldest open turn, or all of it that was read."""
        progress = {p: position for p, position in self._positions.items() if p not in self._replaying}
        for open_turn in self._turns.values():
            if open_turn.partition in progress:
                progress[open_turn.partition] = min(progress[open_turn.partition], open_turn.offset)
        return {p: offset for p, offset in progress.items() if offset > self._committed.get(p, 0)}

    async def _commit(self) -> None:
        self._commit_time = time.monotonic()
        if progress := self._progress():
            await self._log.commit(self._lease, progress)
            self._committed.update(progress)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for open_turn in self._turns.values():
            _stop(open_turn.timer)
        self._worker.cancel()
        TURNS_ACTIVE.set(0)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
