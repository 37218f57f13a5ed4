"""A worker's side of `agent.steps`: a member of the group that makes the attempts that managers ask for."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from google.protobuf.message import DecodeError

from agentshell.log.dead_letter import bury
from agentshell.log.log import Lease, Log, StoredRecord, partition_of
from agentshell.log.rejoin import rejoin
from agentshell.mesh import ids
from agentshell.mesh.errors import AgentShellError
from agentshell.runtime.worker import Worker
from agentshell.turn import envelope
from agentshell.turn.records import command_of, event_of, record_of
from kfm.content.v1.content_pb2 import Message
from kfm.error.v1 import error_pb2
from kfm.turn.v1.turn_event_pb2 import StepCommand, StepRequest, TurnEvent

_log = structlog.get_logger("agentshell.worker")

GROUP = "workers"
_POLL_RECORDS = 100
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_MAX_OPEN = 1000  # Requests that are not done; beyond that it takes no more, other workers may.


class StepConsumer:
    """Takes commands from the log and gives results to it. What it has not finished, another worker does again."""

    def __init__(self, log: Log, worker: Worker, partitions: int) -> None:
        self._log = log
        self._worker = worker
        self._partitions = partitions
        self._member = f"worker-{ids.ulid()}"
        self._lease: Lease | None = None
        self._open: dict[tuple[str, int], tuple[int, int]] = {}  # (step, attempt) -> (partition, offset)
        self._positions: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Joins the group and begins."""
        self._lease = await self._log.join(envelope.STEPS, GROUP, self._member)
        self._task = asyncio.create_task(self._run(self._lease), name="step consumer")

    async def stop(self, timeout: float) -> None:
        """Gives the attempts under way `timeout` seconds, then leaves: another worker makes the others again."""
        await self._worker.drain(timeout)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._lease is not None:
            with contextlib.suppress(AgentShellError):
                await self._commit(self._lease)
                await self._log.leave(self._lease)

    async def _run(self, lease: Lease) -> None:
        while True:
            try:
                while True:
                    await self._serve(lease)
            except AgentShellError as error:
                level = "info" if error.reason == error_pb2.ERROR_REASON_FENCED else "warning"
                getattr(_log, level)("worker's lease over", reason=error.name, message=error.message)
            except Exception:
                _log.exception("step consumer failed")
                await asyncio.sleep(_RETRY_SECONDS)
            self._worker.cancel()  # Whoever has the partitions now makes these attempts.
            self._open.clear()
            self._positions.clear()
            self._committed.clear()
            lease = self._lease = await rejoin(self._log, lease)

    async def _serve(self, lease: Lease) -> None:
        for stored in await self._log.poll(lease, _POLL_RECORDS, _POLL_SECONDS):
            self._positions[stored.partition] = stored.offset + 1
            try:
                await self._take(stored, command_of(stored.record))
            except DecodeError as error:
                await bury(self._log, envelope.STEPS, GROUP, stored, f"undecodable: {error}")
        await self._commit(lease)
        while len(self._open) >= _MAX_OPEN:
            self._room.clear()
            await self._room.wait()

    async def _take(self, stored: StoredRecord, command: StepCommand) -> None:
        if command.HasField("stop"):
            self._worker.cancel(command.stop.turn_id, command.stop.step_id)
            for key in [key for key in self._open if _is_of(key[0], command.stop.turn_id, command.stop.step_id)]:
                self._finish(key)
            return
        request = command.run
        key = (request.step.step_id, request.attempt)
        if key in self._open:  # The same, asked for by the next owner.
            return
        self._open[key] = (stored.partition, stored.offset)
        await self._complete(request)
        self._worker.start(request, lambda event: self._spawn(key, event))

    async def _complete(self, request: StepRequest) -> None:
        """Puts the outputs into a request that refers to them."""
        header = request.header
        partition = partition_of(envelope.session_key(header.tenant_id, header.session_id), self._partitions)
        outputs: list[Message] = [*request.dependencies, *request.transcript]
        for output, offset in zip(outputs, request.output_offsets, strict=True):
            if not offset:
                continue
            [stored] = await self._log.read(envelope.TURNS, partition, offset, 1, 0.0)
            event = event_of(stored.record)
            output.CopyFrom(event.step_succeeded.result.output)

    def _spawn(self, key: tuple[str, int], event: TurnEvent) -> None:
        task = asyncio.create_task(self._publish(key, event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, key: tuple[str, int], event: TurnEvent) -> None:
        """Appends a result; as long as that takes: the attempt was made, and only its result is missing."""
        while key in self._open:
            try:
                await self._log.append(envelope.TURNS, [record_of(event)])
                break
            except AgentShellError as error:
                _log.warning("result waits", step_id=key[0], reason=error.name)
                await asyncio.sleep(_RETRY_SECONDS)
        self._finish(key)

    def _finish(self, key: tuple[str, int]) -> None:
        self._open.pop(key, None)
        self._room.set()

    async def _commit(self, lease: Lease) -> None:
        """Commits up to the oldest request that is not done."""
        progress = dict(self._positions)
        for partition, offset in self._open.values():
            progress[partition] = min(progress[partition], offset)
        if progress != self._committed:
            await self._log.commit(lease, progress)
            self._committed = progress


def _is_of(name: str, turn_id: str, step_id: str) -> bool:
    return name == step_id if step_id else name.startswith(f"{turn_id}/")
