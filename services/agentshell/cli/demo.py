"""`agentshell demo`: runs the whole mesh in this process and two real turns on it, and shows their events."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentshell.cli.ending import FAILED, ending, fail

if TYPE_CHECKING:
    from rich.console import Console

    from xenocomm import Answer, Client

_QUESTIONS = (
    "What happens if the process is killed during a turn?",
    "How do I cancel a turn?",
)
_PERSONALITY = "guide"
_KNOWLEDGE_SECONDS = 60.0
_CALL_SECONDS = 10.0
_POLL_SECONDS = 0.05


def demo(verbose: Annotated[bool, typer.Option("--verbose", help="Print the mesh's log lines.")] = False) -> None:
    """Start the whole mesh, ask it something, show how it answered, and stop it. Leaves nothing behind."""
    with ending(FAILED):
        import uvloop

        with tempfile.TemporaryDirectory(prefix="agentshell-demo-") as directory:
            uvloop.run(_demo(Path(directory), verbose))


async def _demo(data_dir: Path, verbose: bool) -> None:
    from agentshell.cli.render import console
    from agentshell.mesh import config
    from agentshell.mesh.data_directory import key_file
    from agentshell.process import Process
    from xenocomm import Client

    values: dict[str, Any] = {
        "data_dir": data_dir,
        "server": {"address": "127.0.0.1:0", "http_address": "127.0.0.1:0"},
        "telemetry": {"log_level": "info" if verbose else "warning", "log_format": "console"},
    }
    if demo_task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, demo_task.cancel)
    out, began = console(), time.perf_counter()
    # Ignores the user's configuration, so that the demo is the same on every machine.
    process = Process(config.load(None, {}, values))
    await process.start()
    try:
        ready = time.perf_counter() - began
        out.print(f"[dim]the mesh is ready at {process.address}, in {ready:.1f} s: {', '.join(process.names)}[/dim]")
        async with Client.connect(process.address, key_file(data_dir).read_text().strip()) as client:
            await _until_it_knows(client, out)
            await _converse(client, out)
    finally:
        began = time.perf_counter()
        await process.stop()
    out.print(f"[dim]stopped in {time.perf_counter() - began:.1f} s[/dim]")


async def _until_it_knows(client: Client, out: Console) -> None:
    """Waits until the personality's documents are in memory."""
    from kfm.personality.v1.personality_service_pb2 import KNOWLEDGE_STATE_READY, GetRequest
    from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub

    began = time.perf_counter()
    stub = PersonalityServiceStub(client.channel)
    request = GetRequest(personality_id=_PERSONALITY)
    while (await stub.Get(request, timeout=_CALL_SECONDS)).personality.knowledge_state != KNOWLEDGE_STATE_READY:
        if time.perf_counter() - began > _KNOWLEDGE_SECONDS:
            fail(f"its documents are not in memory after {_KNOWLEDGE_SECONDS:.0f} s; --verbose shows why", FAILED)
        await asyncio.sleep(_POLL_SECONDS)
    out.print(f"[dim]personality {_PERSONALITY} knows its documents after {time.perf_counter() - began:.1f} s[/dim]")


async def _converse(client: Client, out: Console) -> None:
    """Asks the questions in one session, then shows the events of their turns."""
    from agentshell.cli.render import events_table

    turns: list[tuple[Answer, float]] = []
    for question in _QUESTIONS:
        began = time.perf_counter()
        answer = await _ask(client, out, question, turns[-1][0].session_id if turns else "")
        turns.append((answer, time.perf_counter() - began))
    for answer, seconds in turns:
        out.print(f"\n[bold]turn {answer.turn_id}[/bold], {seconds * 1000:.0f} ms as its caller saw it")
        out.print(events_table([event async for event in client.events(answer.turn_id)]))


async def _ask(client: Client, out: Console, question: str, session: str) -> Answer:
    from agentshell.cli.writer import AnswerWriter

    out.print(f"\n[bold]> {question}[/bold]\n")
    writer = AnswerWriter(sys.stdout, growing=True)
    async with contextlib.aclosing(client.run(question, personality=_PERSONALITY, session=session)) as stream:
        async for update in stream:
            writer.take(update)
    return writer.end()
