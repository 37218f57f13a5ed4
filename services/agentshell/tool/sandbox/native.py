"""The second tier, for C extensions: the machine's own interpreter, under bubblewrap and the lock of the first."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agentshell.tool.sandbox import lockdown
from agentshell.tool.sandbox.limits import Limits
from agentshell.tool.sandbox.worker import START_SECONDS, Worker, unavailable

# Run by root, bubblewrap would hold less than run by anybody else.
_DEMOTE: Final = f"""
import os, sys
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({lockdown.NOBODY}, {lockdown.NOBODY}, {lockdown.NOBODY})
    os.setresuid({lockdown.NOBODY}, {lockdown.NOBODY}, {lockdown.NOBODY})
os.execv(sys.argv[1], sys.argv[1:])
"""
# The process gets its own source from its command line: none of our files are in its file system.
_WORKER: Final = """
import json, sys, types
sources, *arguments = json.loads(sys.argv[1])
package = None
for name in ("agentshell", "agentshell.tool", "agentshell.tool.sandbox"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = []
for name, source in sources.items():
    module = sys.modules[name] = types.ModuleType(name)
    setattr(package, name.rpartition(".")[2], module)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules["agentshell.tool.sandbox.native_worker"].main(*arguments)
"""
_HERE: Final = Path(__file__).parent
# In the order in which they need one another.
_SOURCES: Final = {
    "host": "guest/host.py",
    "event_loop": "guest/event_loop.py",
    "runner": "guest/runner.py",
    "agentshell.tool.sandbox.canary": "canary.py",
    "agentshell.tool.sandbox.frame": "frame.py",
    "agentshell.tool.sandbox.lockdown": "lockdown.py",
    "agentshell.tool.sandbox.native_worker": "native_worker.py",
}
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin")
_PREFIXES: Final = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix, sys.base_exec_prefix]))"


class NativeTier:
    """One process per call, of the interpreter an operator names; it sees only that one's files and the system's."""

    max_calls = 1

    def __init__(self, limits: Limits, python: str) -> None:
        self._limits = limits
        self._python = python
        self._readable: list[str] = []
        self._bubblewrap = ""

    async def open(self, tell: Callable[[str], None]) -> None:
        """Finds what it needs, and tries it. Raises SANDBOX_UNAVAILABLE."""
        self._bubblewrap = shutil.which("bwrap") or ""
        if not self._bubblewrap:
            raise unavailable("the native tier needs bubblewrap (bwrap), which is not installed: install it")
        prefixes = await self._prefixes()
        self._readable = sorted({path for path in (*_SYSTEM, *prefixes) if await asyncio.to_thread(Path(path).is_dir)})
        await (await self.start()).kill()

    async def start(self) -> Worker:
        """Starts a process."""
        limits = self._limits
        sources = {name: (_HERE / path).read_text() for name, path in _SOURCES.items()}
        arguments = json.dumps([sources, self._readable, limits.memory_bytes, limits.cpu_seconds])
        jail = (self._bubblewrap, "--unshare-all", "--new-session", "--die-with-parent", "--cap-drop", "ALL")
        files = [word for path in self._readable for word in ("--ro-bind", path, path)]
        files += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--dev-bind", "/dev/null", "/dev/null"]
        command = (self._python, "-I", "-B", "-c", _WORKER, arguments)
        return await Worker.start((sys.executable, "-I", "-c", _DEMOTE, *jail, *files, "--chdir", "/", "--", *command))

    async def _prefixes(self) -> list[str]:
        """Returns where the interpreter says that its files are. Raises SANDBOX_UNAVAILABLE."""
        command = (sys.executable, "-I", "-c", _DEMOTE, self._python, "-I", "-c", _PREFIXES)
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=DEVNULL, env={}, cwd="/")
        try:
            async with asyncio.timeout(START_SECONDS):
                said, _ = await process.communicate()
            return json.loads(said)
        except (TimeoutError, ValueError) as error:
            raise unavailable(
                f"tool.native_python {self._python!r} cannot be run by a user other than root: name one that can"
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
