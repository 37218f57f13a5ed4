"""The owner of some partitions: folds their turns, decides, has steps run, and writes down the outcome.

One loop, fed by one inbox of log records, outcomes of attempts and timers. It handles everything in the inbox at once
and writes it, with the decisions that follow, in one append, so that a step costs one durable commit. An attempt starts
while its scheduling is being written: if a crash loses that, it is decided again and run again under the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from agentshell.log.log import Lease, Log, Record, StoredRecord
from agentshell.mesh.config import RuntimeConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.telemetry import TURNS_ACTIVE
from agentshell.runtime import conclusion
from agentshell.runtime.conclusion import Conclusion
from agentshell.runtime.dispatch import Dispatch
from agentshell.runtime.ended import Ended
from agentshell.runtime.inbox import Concluded, Due, Inbox, Item, Made, Parked
from agentshell.runtime.journal import Journal
from agentshell.runtime.open_turn import OpenTurn
from agentshell.runtime.parking import Parking
from agentshell.runtime.poison import Poison
from agentshell.runtime.progress import Progress
from agentshell.runtime.request import step_request
from agentshell.runtime.schedule import Schedule
from agentshell.runtime.timers import Timers
from agentshell.turn import envelope
from agentshell.turn.decision import decide, expire, expire_inputs, is_all, restart, unfit
from agentshell.turn.records import event_of, record_of, stamp
from agentshell.turn.state import Fold, is_over
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import Failure
from kfm.turn.v1.turn_event_pb2 import TurnEvent, TurnFailed
from kfm.turn.v1.turn_pb2 import STEP_STATE_SKIPPED, TURN_STATE_REQUESTED, TURN_STATE_WAITING, Turn

_log = structlog.get_logger("agentshell.manager")

_POLL_RECORDS = 500
_POLL_SECONDS = 30.0
_BATCHES_AHEAD = 2
_COMMIT_SECONDS = 1.0
_MAX_DEFECTS = 3  # of a turn, before it fails so that the others go on


_News = list[tuple[OpenTurn, TurnEvent]]


@dataclass(frozen=True, slots=True)
class Means:
    """What successive owners work with."""

    log: Log
    dispatch: Dispatch
    parking: Parking
    conclusion: Conclusion
    config: RuntimeConfig
    ended: Ended = field(default_factory=Ended)


class Owner:
    """Owns the partitions of `lease` until it is over. `run` raises what ends it; the next owner folds them again.

    The owners of one process share `poison`.
    """

    def __init__(self, means: Means, lease: Lease, poison: Poison) -> None:
        self._means = means
        self._log = means.log
        self._lease = lease
        self._poison = poison
        self._journal = Journal(means.log, lease)
        self._inbox = Inbox()
        self._ahead = asyncio.Semaphore(_BATCHES_AHEAD)
        self._turns: dict[str, OpenTurn] = {}
        self._timers = Timers(lambda turn_id: self._inbox.put(Due(turn_id)))
        self._parked: set[str] = set()  # turns that may be parked; those that have resumed are in `_turns` too
        self._schedule = Schedule(means.config.max_active_turns)
        self._touched: dict[str, OpenTurn] = {}  # to decide about
        self._unsettled: dict[str, OpenTurn] = {}  # to settle once their newest events are in the log
        self._said: list[Record] = []  # the last outputs of attempts
        self._repeated: list[Record] = []  # commands to repeat to the workers
        self._progress = Progress((), {}, ())
        self._commit_time = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Folds what is there, continues it, and serves what comes. Raises FENCED and LOG_UNAVAILABLE."""
        committed = await self._log.committed(envelope.TURNS, self._lease.group)
        self._progress = Progress(self._lease.partitions, committed, await self._log.end_offsets(envelope.TURNS))
        for turn_id, wake_time in (await self._means.parking.list(self._lease.partitions)).items():
            self._parked.add(turn_id)
            self._timers.set(turn_id, wake_time.timestamp())
        self._spawn(self._feed())
        try:
            is_quiet = False
            while True:
                items = await self._inbox.take(None if is_quiet else _COMMIT_SECONDS)
                await self._handle(items)
                is_quiet = not items
                if is_quiet or time.monotonic() - self._commit_time >= _COMMIT_SECONDS:
                    await self._commit()
        finally:
            self._close()

    async def _feed(self) -> None:
        while True:
            await self._ahead.acquire()
            self._inbox.put(await self._log.poll(self._lease, _POLL_RECORDS, _POLL_SECONDS))

    async def _handle(self, items: Iterable[Item]) -> None:
        news: _News = []
        for item in items:
            match item:
                case Exception():
                    raise item
                case list():
                    await self._fold(item)
                    self._ahead.release()
                case Made(event, said):
                    if (open_turn := self._turns.get(event.turn_id)) and self._add(open_turn, event, news):
                        # The consequences of a failure are final, and another owner may have started the next attempt.
                        open_turn.holds |= event.HasField("step_failed")
                        self._said += said
                case Due():
                    await self._wake(item.turn_id)
                case Concluded():
                    self._parked.discard(item.turn_id)
                    self._release(item.turn_id)
                case Parked():
                    self._leave(item)
        while self._touched or self._begin():
            self._decide_all(news)
            if news or self._repeated:
                await self._write(news)
                news = []
            while self._unsettled:  # A turn that is over makes room for others.
                _, open_turn = self._unsettled.popitem()
                self._settle(open_turn)
        TURNS_ACTIVE.set(self._schedule.active_count)

    # Reading the log

    async def _fold(self, records: list[StoredRecord]) -> None:
        for stored in records:
            if own_turn_id := self._progress.read(stored.partition, stored.offset):
                self._confirm(own_turn_id, stored.offset)
                continue
            try:
                await self._fold_event(stored)
            except AgentShellError:
                raise
            except Exception as error:
                await self._poison.blame(stored, error)
        for partition in self._progress.end_replays(all_read=not records):
            self._end_replay(partition)

    async def _fold_event(self, stored: StoredRecord) -> None:
        event = event_of(stored.record)
        open_turn = self._turns.get(event.turn_id)
        if open_turn is None and event.turn_id in self._parked:
            open_turn = await self._unpark(event.turn_id, stored.offset)
            self._touch(event.turn_id)
        elif open_turn is None and event.HasField("turn_requested") and event.turn_id not in self._means.ended:
            open_turn = OpenTurn(stored.partition, stored.offset, event.turn_requested, event.header)
            self._open(event.turn_id, open_turn)
        if open_turn is None or stored.offset <= open_turn.folded_offset:
            return
        if stored.offset < open_turn.written_offset:
            await self._fold_anew(open_turn)
            self._touch(event.turn_id)
            return
        open_turn.folded_offset = stored.offset
        open_turn.place(event, stored.offset)
        if open_turn.apply(event):
            # It is from an earlier owner that does not know yet that it is fenced: nobody makes that attempt.
            open_turn.interrupted |= event.HasField("step_scheduled")
            self._touch(event.turn_id)
        if event.HasField("turn_requested"):
            self._set_timer(open_turn)

    def _confirm(self, turn_id: str, offset: int) -> None:
        """Records that one of our own records has been read back from the log."""
        if open_turn := self._turns.get(turn_id):
            open_turn.folded_offset = offset
            turn = open_turn.turn
            if open_turn.is_confirmed and (open_turn.holds or is_over(turn) or turn.state == TURN_STATE_WAITING):
                open_turn.holds = False
                self._touch(turn_id)

    async def _fold_anew(self, open_turn: OpenTurn) -> None:
        """Folds a turn again in the log's order, after another's record came before one of ours."""
        turn_id, last, attempts = open_turn.turn.turn_id, open_turn.written_offset, open_turn.attempts
        parked = await self._means.parking.load(turn_id) if turn_id in self._parked else None
        open_turn.fold = parked.fold if parked else Fold(Turn())
        offset = parked.folded_offset + 1 if parked else open_turn.offset
        while offset <= last:
            records = await self._log.read(envelope.TURNS, open_turn.partition, offset, _POLL_RECORDS, 0.0)
            for stored in records:
                with contextlib.suppress(DecodeError):  # It was buried when it was first read.
                    event = event_of(stored.record)
                    if event.turn_id == turn_id and stored.offset <= last:
                        open_turn.place(event, stored.offset)
                        open_turn.apply(event)
            offset = records[-1].offset + 1 if records else last + 1
        open_turn.folded_offset = last
        open_turn.interrupted |= not open_turn.attempts <= attempts  # Otherwise they were all started here.

    def _open(self, turn_id: str, open_turn: OpenTurn) -> None:
        header = open_turn.header
        self._turns[turn_id] = open_turn
        session = envelope.session_key(header.tenant_id, header.session_id)
        requested = open_turn.requested
        is_awaited = requested.HasField("parent")
        self._schedule.add(turn_id, header.tenant_id, session, requested.priority, is_awaited=is_awaited)

    def _end_replay(self, partition: int) -> None:
        for turn_id, open_turn in self._turns.items():
            if open_turn.partition == partition:
                open_turn.interrupted = True
                self._touch(turn_id)

    # Deciding

    def _touch(self, turn_id: str) -> None:
        if open_turn := self._turns.get(turn_id):
            self._touched[turn_id] = open_turn

    def _begin(self) -> bool:
        """Starts the turns that there is room for. Returns whether there is anything to decide."""
        for turn_id in self._schedule.begin():
            self._touch(turn_id)
        return bool(self._touched)

    def _decide_all(self, news: _News) -> None:
        while self._touched or self._begin():
            _, open_turn = self._touched.popitem()
            self._guarded(open_turn, news)

    def _guarded(self, open_turn: OpenTurn, news: _News) -> None:
        """Decides about a turn. A turn about which deciding fails for the third time fails; the others go on."""
        turn_id = open_turn.turn.turn_id
        try:
            self._decide(open_turn, news)
        except Exception as error:
            open_turn.defects += 1
            _log.exception("cannot decide", turn_id=turn_id, defects=open_turn.defects)
            if open_turn.defects < _MAX_DEFECTS:
                self._touch(turn_id)
                return
            message = f"a defect of the engine ({type(error).__name__}); see the manager's log for turn {turn_id}"
            failure = Failure(code=code_pb2.INTERNAL, reason=error_pb2.ERROR_REASON_INTERNAL, message=message)
            self._add_all(open_turn, [TurnEvent(turn_failed=TurnFailed(failure=failure))], news)

    def _decide(self, open_turn: OpenTurn, news: _News) -> None:
        turn = open_turn.turn
        if self._progress.is_replaying(open_turn.partition) or open_turn.holds:
            return
        if open_turn.interrupted:
            open_turn.interrupted = False
            self._take_over(open_turn, news)
        if open_turn.due:
            open_turn.due = False
            expired = expire_inputs(turn, datetime.now(UTC).replace(tzinfo=None))
            self._add_all(open_turn, expired, news)
            self._set_timer(open_turn)
            if expired:
                open_turn.holds = True
                return
        if is_over(turn) or turn.state == TURN_STATE_WAITING:
            self._unsettled[turn.turn_id] = open_turn
        elif open_turn.is_late(time.time()):
            self._add_all(open_turn, [expire(turn)], news)
        elif self._schedule.has_begun(turn.turn_id):
            decided = decide(turn, open_turn.requested)
            self._add_all(open_turn, decided, news)
            if is_all(turn, decided):
                self._touched.pop(turn.turn_id, None)

    def _take_over(self, open_turn: OpenTurn, news: _News) -> None:
        """Continues a turn that another owner started."""
        turn = open_turn.turn
        if turn.state != TURN_STATE_REQUESTED:
            self._schedule.resume(turn.turn_id)
        self._set_timer(open_turn)
        self._repeated += self._stops(open_turn)
        for event in [] if is_over(turn) else restart(turn):
            scheduled = event.step_scheduled
            if self._means.dispatch.goes_on(scheduled.step_id, scheduled.attempt - 1, self._inbox.put):
                continue
            if self._means.dispatch.outlives_owner:  # Request the same attempt again: no effect if it is under way.
                scheduled.attempt -= 1
                self._repeated += self._ask(open_turn, stamp(event, turn.turn_id, open_turn.header))
            else:
                self._add_all(open_turn, [event], news)

    def _stops(self, open_turn: OpenTurn) -> list[Record]:
        """Stops attempts that are no longer wanted: the previous owner may have ended before it told the workers."""
        turn, stop = open_turn.turn, self._means.dispatch.stop
        skipped = [s.step_id for s in turn.plan.steps if s.state == STEP_STATE_SKIPPED and s.attempt]
        if is_over(turn):
            return stop(open_turn) if skipped or open_turn.attempts else []
        return [record for step_id in skipped for record in stop(open_turn, step_id)]

    def _add_all(self, open_turn: OpenTurn, events: Iterable[TurnEvent], news: _News) -> None:
        for event in events:
            self._add(open_turn, stamp(event, open_turn.turn.turn_id, open_turn.header), news)

    def _add(self, open_turn: OpenTurn, event: TurnEvent, news: _News) -> bool:
        if not open_turn.apply(event):
            return False
        news.append((open_turn, event))
        self._touch(event.turn_id)  # Decides again about what changed, until nothing follows.
        return True

    # Writing and acting

    async def _write(self, news: _News) -> None:
        said, self._said = self._said, []
        commands, self._repeated = self._repeated, []
        records = [record_of(event) for _, event in news]
        if self._means.dispatch.outlives_owner:
            commands += (record for each in news for record in self._command(*each))
            acks = await self._journal.write(records, commands, said)
        else:
            doing = asyncio.create_task(self._do(news))
            try:
                acks = await self._journal.write(records, [], said)
                await doing
            finally:
                doing.cancel()
        for (open_turn, event), ack in zip(news, acks, strict=True):
            self._progress.wrote(event.turn_id, ack)
            open_turn.written_offset = ack.offset
            open_turn.place(event, ack.offset)

    async def _do(self, told: _News) -> None:
        await asyncio.sleep(0)  # Lets the append be sent first: attempts start while the disk is busy.
        for open_turn, event in told:
            self._command(open_turn, event)

    def _command(self, open_turn: OpenTurn, event: TurnEvent) -> list[Record]:
        """Carries out what an event asks for. Returns the records for the workers' topic."""
        dispatch, turn = self._means.dispatch, open_turn.turn
        match event.WhichOneof("event"):
            case "step_scheduled" if not is_over(turn):
                if open_turn.fold.steps[event.step_scheduled.step_id].HasField("approval"):
                    self._set_timer(open_turn)
                    return []
                return self._ask(open_turn, event)
            case "step_skipped" if open_turn.fold.steps[event.step_skipped.step_id].attempt:
                return dispatch.stop(open_turn, event.step_skipped.step_id)
            case "turn_completed" | "turn_failed" | "turn_cancelled":
                if open_turn.attempts:
                    return dispatch.stop(open_turn)
            case _:
                pass
        return []

    def _ask(self, open_turn: OpenTurn, event: TurnEvent) -> list[Record]:
        """Starts an attempt. Its input may no longer evaluate, because parallel steps have started since."""
        try:
            request = step_request(open_turn.fold, event, self._means.config)
        except ValueError as error:
            step = open_turn.fold.steps[event.step_scheduled.step_id]
            failed = unfit(step, error_pb2.ERROR_REASON_PLAN_INVALID, str(error))
            self._inbox.put(Made(stamp(failed, event.turn_id, open_turn.header)))
            return []
        return self._means.dispatch.begin(open_turn, request, self._inbox.put)

    def _settle(self, open_turn: OpenTurn) -> None:
        """Concludes a turn that is over, or parks one that waits, once its last record has been read back."""
        turn, means = open_turn.turn, self._means
        if not open_turn.is_confirmed:
            return
        if not is_over(turn):
            self._parked.add(turn.turn_id)
            self._spawn(self._park(open_turn))
        elif not open_turn.concluded:
            open_turn.concluded = True
            means.dispatch.stop(open_turn)
            conclusion.tell(open_turn)
            was_parked = turn.turn_id in self._parked
            if means.conclusion.is_needed(open_turn, was_parked=was_parked):
                self._spawn(self._conclude(open_turn, was_parked=was_parked))
            else:
                self._release(turn.turn_id)

    async def _conclude(self, open_turn: OpenTurn, *, was_parked: bool) -> None:
        await self._means.conclusion.run(open_turn, was_parked=was_parked)
        self._inbox.put(Concluded(open_turn.turn.turn_id))

    async def _park(self, open_turn: OpenTurn) -> None:
        if open_turn.turn.state != TURN_STATE_WAITING or not open_turn.is_confirmed:
            return  # It has moved on, perhaps ahead of the log: a crash would leave a parked turn that never was.
        folded_offset = open_turn.folded_offset
        wake_time = await self._means.parking.save(open_turn)
        self._inbox.put(Parked(open_turn.turn.turn_id, folded_offset, wake_time))

    def _leave(self, parked: Parked) -> None:
        """Forgets a parked turn, unless it has resumed in the meantime."""
        open_turn = self._turns.get(parked.turn_id)
        if open_turn and open_turn.turn.state == TURN_STATE_WAITING:
            if open_turn.folded_offset == parked.folded_offset:
                self._release(parked.turn_id)
                self._timers.set(parked.turn_id, parked.wake_time.timestamp())
            else:
                self._touch(parked.turn_id)

    async def _unpark(self, turn_id: str, offset: int | None = None) -> OpenTurn | None:
        open_turn = await self._means.parking.load(turn_id)
        if open_turn is None:
            self._parked.discard(turn_id)
            return None
        # The next owner reads from here, and finds what came before among the parked turns.
        open_turn.offset = self._progress.position(open_turn.partition) if offset is None else offset
        self._open(turn_id, open_turn)
        self._schedule.resume(turn_id)
        return open_turn

    async def _wake(self, turn_id: str) -> None:
        open_turn = self._turns.get(turn_id)
        if open_turn is None and turn_id in self._parked:
            open_turn = await self._unpark(turn_id)
        if open_turn is not None:
            open_turn.due = True
            self._touch(turn_id)

    def _release(self, turn_id: str) -> None:
        """Forgets a turn, so that the next one in its session, or another waiting one, may start."""
        if open_turn := self._turns.pop(turn_id, None):
            self._schedule.remove(turn_id)
            if is_over(open_turn.turn):
                self._means.ended.add(turn_id)
        self._timers.cancel(turn_id)

    # Time, progress and the end

    def _set_timer(self, open_turn: OpenTurn) -> None:
        if not is_over(open_turn.turn):
            self._timers.set(open_turn.turn.turn_id, open_turn.next_time())

    async def _commit(self) -> None:
        self._commit_time = time.monotonic()
        if offsets := self._progress.to_commit((turn.partition, turn.offset) for turn in self._turns.values()):
            await self._log.commit(self._lease, offsets)
            self._progress.committed(offsets)
        if self._progress.has_replayed:
            self._means.dispatch.keep(self._inbox.put)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._inbox.put(error if isinstance(error, Exception) else RuntimeError(str(error)))

    def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._timers.close()
        TURNS_ACTIVE.set(0)
