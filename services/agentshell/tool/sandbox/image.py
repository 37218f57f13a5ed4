"""The image of the guest's interpreter: built once, from this package's files, into a cache that is verified.

    python -m agentshell.tool.sandbox.image

builds it unless it exists. That takes half a minute, and needs no network.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_GUEST: Final = Path(__file__).with_name("guest")
_BUILDERS: Final = ("wasmtime", "componentize-py")
_COMPONENTIZE: Final = "import sys, componentize_py; sys.exit(componentize_py.script())"
_BUILD_SECONDS: Final = 600
_SAID_CHARACTERS: Final = 500
_BUILDING: Final = "building the sandbox's interpreter, once on this machine; it takes about half a minute"


def default_directory() -> Path:
    """Returns where images are kept: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentshell" / "sandbox"


def path(directory: Path) -> Path:
    """Returns the path of the image for this package, these builders and this machine."""
    made_of = hashlib.sha256(f"{platform.machine()}\0".encode())
    for builder in _BUILDERS:
        made_of.update(f"{builder}\0{version(builder)}\0".encode())
    for file in (Path(__file__).with_name("engine.py"), *sorted(_GUEST.glob("*.*"))):
        made_of.update(f"{file.name}\0".encode() + file.read_bytes())
    return directory / f"python-{made_of.hexdigest()[:32]}.cwasm"


async def ensure(directory: Path, tell: Callable[[str], None]) -> Path:
    """Returns the image's path; builds it if needed, which it tells `tell`. Raises SANDBOX_UNAVAILABLE."""
    image = path(directory)
    if not await asyncio.to_thread(_is_whole, image):
        tell(_BUILDING)
        await _build_apart(directory)
    return image


def build(directory: Path) -> Path:
    """Builds the image if it is missing, or was altered. Raises SANDBOX_UNAVAILABLE."""
    image = path(directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise _unavailable(
                f"{directory} is not writable by this user alone; set XDG_CACHE_HOME to a directory that is"
            )
        with (directory / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=directory) as scratch:
            fcntl.flock(lock, fcntl.LOCK_EX)  # Whoever had to wait finds it built.
            if not _is_whole(image):
                _compile(Path(scratch), image)
    except OSError as error:
        raise _unavailable(
            f"{directory}: {error.strerror}; set XDG_CACHE_HOME to a directory that this user owns"
        ) from error
    return image


async def _build_apart(directory: Path) -> None:
    """Builds in a separate process: it takes a gigabyte, and a processor, for half a minute."""
    command = (sys.executable, "-m", __name__, str(directory))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(_BUILD_SECONDS):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # With the compiler that it runs.
            await process.wait()
    if process.returncode:
        raise _unavailable(said.decode(errors="replace").strip()[-_SAID_CHARACTERS:])


def _compile(scratch: Path, image: Path) -> None:
    import wasmtime.component  # Only a build pays for the import.

    from agentshell.tool.sandbox import engine

    portable = scratch / "python.wasm"
    arguments = ("-q", "-d", str(_GUEST), "-w", "sandbox", "componentize", "component", "-p", str(_GUEST))
    ran = subprocess.run(  # noqa: S603 - our own words
        (sys.executable, "-c", _COMPONENTIZE, *arguments, "-o", str(portable)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if ran.returncode:
        raise _unavailable(f"componentize-py failed: {ran.stdout.decode(errors='replace')[-_SAID_CHARACTERS:]}")
    compiled = bytes(wasmtime.component.Component.from_file(engine.build(), str(portable)).serialize())
    native = scratch / image.name
    native.write_bytes(compiled)
    _digest_file(image).write_text(hashlib.sha256(compiled).hexdigest())
    native.replace(image)


def _is_whole(image: Path) -> bool:
    """Returns whether the image is what was built: it is native code, which nothing else checks."""
    try:
        with image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == _digest_file(image).read_text()
    except OSError:
        return False


def _digest_file(image: Path) -> Path:
    return image.with_suffix(".sha256")


def _unavailable(problem: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_SANDBOX_UNAVAILABLE,
        f"the sandbox's interpreter cannot be built, so no tool of a pack runs: {problem}",
    )


if __name__ == "__main__":
    wanted = Path(sys.argv[1]) if sys.argv[1:] else default_directory()
    if not _is_whole(path(wanted)):
        print(f"{_BUILDING}: {path(wanted)}", flush=True)
    try:
        build(wanted)
    except AgentShellError as refused:
        sys.exit(refused.message)
