"""The workers' side of `agent.steps`: a member of the group that runs attempts for the managers."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from google.protobuf.message import DecodeError

from agentshell.log.dead_letter import bury
from agentshell.log.log import Lease, Log, StoredRecord, partition_of
from agentshell.log.rejoin import rejoin
from agentshell.mesh import errors, ids
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.inbox import Made
from agentshell.runtime.request import has_turn
from agentshell.runtime.worker import Worker
from agentshell.turn import envelope
from agentshell.turn.records import command_of, event_of, record_of
from kfm.content.v1.content_pb2 import Message
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import StepCommand, StepRequest, TurnEvent

_log = structlog.get_logger("agentshell.worker")

_POLL_RECORDS = 100
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_MAX_OPEN = 1000  # Unfinished requests; beyond that it takes no more, but other workers may.


class StepConsumer:
    """Takes commands from the log and appends results. Another worker redoes what it does not finish."""

    def __init__(self, log: Log, worker: Worker, partitions: int) -> None:
        self._log = log
        self._worker = worker
        self._partitions = partitions
        self._member = f"worker-{ids.ulid()}"
        self._lease: Lease | None = None
        self._open: dict[tuple[str, int], tuple[int, int]] = {}  # (step, attempt) -> (partition, offset)
        self._with_turn: set[tuple[str, int]] = set()  # those that wait for a sub-turn
        self._positions: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Joins the group and starts."""
        self._lease = await self._log.join(envelope.STEPS, envelope.WORKERS, self._member)
        self._task = asyncio.create_task(self._run(self._lease), name="step consumer")

    async def stop(self, timeout: float) -> None:
        """Gives the attempts under way `timeout` seconds, then leaves; another worker redoes the rest."""
        await self._worker.drain(timeout)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._worker.drain(0)  # Those taken meanwhile.
        if self._lease is not None:
            with contextlib.suppress(AgentShellError):
                await self._commit(self._lease)
                await self._log.leave(self._lease)

    async def _run(self, lease: Lease) -> None:
        while True:
            try:
                await self._resume(lease)
                while True:
                    await self._serve(lease)
            except AgentShellError as error:
                level = "info" if error.reason == error_pb2.ERROR_REASON_FENCED else "warning"
                getattr(_log, level)("worker's lease over", reason=error.name, message=error.message)
            except Exception:
                _log.exception("step consumer failed")
                await asyncio.sleep(_RETRY_SECONDS)
            lease = self._lease = await rejoin(self._log, lease)

    async def _resume(self, lease: Lease) -> None:
        """Keeps the attempts of partitions that nobody else has held meanwhile, and hands over the rest."""
        committed = await self._log.committed(envelope.STEPS, envelope.WORKERS)
        kept = {at for at in lease.partitions if committed.get(at) == self._committed.get(at)}
        lost = [key for key, (partition, _) in self._open.items() if partition not in kept]
        self._worker.hand_over({step_id for step_id, _ in lost})
        for key in lost:
            del self._open[key]
            self._with_turn.discard(key)
        self._positions = {at: position for at, position in self._positions.items() if at in kept}
        self._committed = committed

    async def _serve(self, lease: Lease) -> None:
        for stored in await self._log.poll(lease, _POLL_RECORDS, _POLL_SECONDS):
            if stored.offset < self._positions.get(stored.partition, 0):  # Taken under the previous lease.
                continue
            try:
                await self._take(stored, command_of(stored.record))
            except DecodeError as error:
                await bury(self._log, envelope.STEPS, envelope.WORKERS, stored, f"undecodable: {error}")
            except Exception as error:
                if errors.of(error).code in errors.TRANSIENT_CODES:
                    raise
                _log.exception("command buried", partition=stored.partition, offset=stored.offset)
                await bury(self._log, envelope.STEPS, envelope.WORKERS, stored, f"{type(error).__name__}: {error}")
            self._positions[stored.partition] = stored.offset + 1
        await self._commit(lease)
        while len(self._open) - len(self._with_turn) >= _MAX_OPEN:  # Those wait for other steps, which must be taken.
            self._room.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._room.wait()
            await self._log.commit(lease, {})  # Renews the lease without polling, so that others do not redo these.

    async def _take(self, stored: StoredRecord, command: StepCommand) -> None:
        if command.HasField("stop"):
            self._worker.cancel(command.stop.turn_id, command.stop.step_id)
            for key in [key for key in self._open if _is_of(key[0], command.stop.turn_id, command.stop.step_id)]:
                self._finish(key)
            return
        request = command.run
        key = (request.step.step_id, request.attempt)
        if key in self._open:  # Repeated by the next owner.
            return
        await self._complete(request)
        self._open[key] = (stored.partition, stored.offset)
        if has_turn(request.step):
            self._with_turn.add(key)
        self._worker.start(request, lambda made: self._spawn(key, made))

    async def _complete(self, request: StepRequest) -> None:
        """Fills in the outputs and the input that a request refers to."""
        header = request.header
        partition = partition_of(envelope.session_key(header.tenant_id, header.session_id), self._partitions)
        if request.HasField("input_offset"):
            event = await self._event(partition, request.input_offset)
            request.input.CopyFrom(event.turn_requested.input)
        outputs: list[Message] = [*request.dependencies, *request.transcript]
        for output, offset in zip(outputs, request.output_offsets, strict=True):
            if not offset:
                continue
            event = await self._event(partition, offset)
            output.CopyFrom(event.step_succeeded.result.output)

    async def _event(self, partition: int, offset: int) -> TurnEvent:
        [stored] = await self._log.read(envelope.TURNS, partition, offset, 1, 0.0)
        return event_of(stored.record)

    def _spawn(self, key: tuple[str, int], made: Made) -> None:
        task = asyncio.create_task(self._publish(key, made))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, key: tuple[str, int], made: Made) -> None:
        """Appends a result, retrying without limit: the attempt was made, and only its result is missing."""
        said = [(envelope.OUTPUTS, made.said)] if made.said else []
        batches = [*said, (envelope.TURNS, [record_of(made.event)])]
        while key in self._open:
            try:
                await self._log.append_all(batches)
                break
            except AgentShellError as error:
                _log.warning("result waits", step_id=key[0], reason=error.name)
                await asyncio.sleep(_RETRY_SECONDS)
        self._finish(key)

    def _finish(self, key: tuple[str, int]) -> None:
        self._open.pop(key, None)
        self._with_turn.discard(key)
        self._room.set()

    async def _commit(self, lease: Lease) -> None:
        """Commits up to the oldest unfinished request."""
        progress = dict(self._positions)
        for partition, offset in self._open.values():
            progress[partition] = min(progress[partition], offset)
        if news := {at: offset for at, offset in progress.items() if offset != self._committed.get(at)}:
            await self._log.commit(lease, news)
            self._committed.update(news)


def _is_of(name: str, turn_id: str, step_id: str) -> bool:
    return name == step_id if step_id else name.startswith(f"{turn_id}/")
