"""A process of the native tier, which runs one tool in the machine's own interpreter.

It gives up all rights before it is told what to run, and ends with the call. Needs only the standard library, and
Python 3.10.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Final

import host
import runner

from agentshell.tool.sandbox import canary, frame, lockdown

# In addition to the tool's own memory.
_OWN_MEMORY_BYTES: Final = 64 * 1024 * 1024
_DESCRIPTORS: Final = 64


def main(readable: Sequence[str], memory_bytes: int, cpu_seconds: float) -> None:
    """Serves one call. `readable` are the interpreter's directories."""
    pipe = frame.own()

    def ask_host(name: str, arguments: str) -> str:
        pipe.send({"host": name, "arguments": arguments})
        answer = pipe.receive() or {}
        if "value" not in answer:
            raise host.HostError(str(answer.get("error", "the host ends the call")))
        return str(answer["value"])

    lockdown.limit(memory_bytes=memory_bytes + _OWN_MEMORY_BYTES, files=_DESCRIPTORS)
    lockdown.leave_files(readable)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # The next line gives up what could stop its signal.
    lockdown.leave_calls(lockdown.INTERPRETER_CALLS, threads=False, new_code=True)
    pipe.send({"escapes": canary.escapes(new_code=True)})
    if request := pipe.receive():
        pipe.send(frame.answer(runner.run(request["call"], ask_host), request["output_bytes"]))
