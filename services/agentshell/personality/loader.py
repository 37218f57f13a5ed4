"""Packs on disk: finds them, reads them, and keeps the last good version of each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType] - an event of trio, which we have not

from agentshell.mesh.errors import AgentShellError
from agentshell.personality import pack
from agentshell.personality.manifest import FILE, PackError
from agentshell.personality.pack import Pack
from kfm.error.v1 import error_pb2

MAX_FILES = 1000
MAX_FILE_BYTES = 1024 * 1024
MAX_PACK_BYTES = 16 * 1024 * 1024
# A burst of writes is one change: it is over when nothing came for a step, and is not waited for longer than this.
_DEBOUNCE_MILLISECONDS = 400
_STEP_MILLISECONDS = 50


@dataclass(frozen=True, slots=True)
class Removed:
    """A personality that is no longer there."""

    personality_id: str


Change = Pack | Removed | AgentShellError
"""A pack loaded for the first time or anew, one removed, or what is wrong with one that is malformed."""


def shipped() -> Path:
    """Returns where the packs are that ship with Agent Shell: in the wheel, or at the root of the repository."""
    package = Path(__file__).parents[1]
    in_wheel = package / "personalities"
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "personalities"


class Loader:
    """Reads the packs of some directories: each folder in one is a pack, hidden ones apart.

    `packs` has the versions to serve, by personality id. `failures` has what is wrong now with packs, by folder.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories = tuple(dict.fromkeys(directory.resolve() for directory in directories))
        self._good: dict[Path, Pack] = {}
        self.packs: dict[str, Pack] = {}
        self.failures: dict[Path, PackError] = {}

    def check(self) -> None:
        """Raises CONFIG_INVALID where a directory cannot be read."""
        for directory in self._directories:
            _folders(directory)

    async def reload(self, folders: Collection[Path] | None = None) -> list[Change]:
        """Reads these folders (None: all there are) and those that were malformed, and returns what changed.

        One call at a time. Raises CONFIG_INVALID where a directory cannot be read; nothing has changed then.
        """
        found = await asyncio.to_thread(self._read, folders)
        packs, failures = self.packs, self.failures
        self._settle(found)
        changes: list[Change] = [Removed(personality_id) for personality_id in sorted(packs.keys() - self.packs.keys())]
        changes += [
            new
            for personality_id, new in sorted(self.packs.items())
            if personality_id not in packs or packs[personality_id].digest != new.digest
        ]
        changes += [
            _rejection(folder, failure)
            for folder, failure in sorted(self.failures.items())
            if str(failure) != str(failures.get(folder))
        ]
        return changes

    def rejections(self) -> list[AgentShellError]:
        """Returns what is wrong now, a PACK_INVALID for each malformed pack."""
        return [_rejection(folder, failure) for folder, failure in sorted(self.failures.items())]

    async def watch(self) -> AsyncGenerator[set[Path]]:
        """Yields the folders in which something changed, for ever; within half a second of the change."""
        changes = awatch(
            *self._directories, watch_filter=None, debounce=_DEBOUNCE_MILLISECONDS, step=_STEP_MILLISECONDS
        )
        async with aclosing(changes):
            async for batch in changes:
                yield {folder for _, path in batch for folder in self._folder(Path(path))}

    def _folder(self, path: Path) -> Iterator[Path]:
        for directory in self._directories:
            if path.is_relative_to(directory) and path != directory:
                yield directory / path.relative_to(directory).parts[0]

    def _read(self, folders: Collection[Path] | None) -> dict[Path, Pack | PackError | None]:
        if folders is None:
            folders = {folder for directory in self._directories for folder in _folders(directory)} | self._good.keys()
        return {folder: _read_pack(folder) for folder in {*folders, *self.failures}}

    def _settle(self, found: Mapping[Path, Pack | PackError | None]) -> None:
        """Decides which packs serve. An id belongs to the folder that has it; a new one goes in the order of paths."""
        good = {folder: kept for folder, kept in self._good.items() if folder not in found}
        owners = {kept.personality_id: folder for folder, kept in good.items()}
        failures: dict[Path, PackError] = {}

        def is_new(folder: Path) -> bool:
            new, last = found[folder], self._good.get(folder)
            return isinstance(new, Pack) and (last is None or new.personality_id != last.personality_id)

        for folder in sorted(found, key=lambda folder: (is_new(folder), self._place(folder))):
            new: Pack | PackError | None = found[folder]
            if isinstance(new, Pack) and new.personality_id in owners:
                new = _duplicate(new, owners[new.personality_id])
            if isinstance(new, PackError):
                failures[folder] = new
                new = self._good.get(folder)
            if new and new.personality_id not in owners:
                good[folder] = new
                owners[new.personality_id] = folder
        self._good, self.failures = good, failures
        self.packs = {kept.personality_id: kept for kept in good.values()}

    def _place(self, folder: Path) -> tuple[int, Path]:
        return self._directories.index(folder.parent), folder


def _folders(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise AgentShellError(
            error_pb2.ERROR_REASON_CONFIG_INVALID,
            f"configuration key 'personality.directories' = {str(directory)!r}: {error.strerror}; "
            "name a directory that can be read",
            metadata={"key": "personality.directories", "value": str(directory), "fix": "name another directory"},
        ) from None


def _read_pack(folder: Path) -> Pack | PackError | None:
    """Returns the pack in a folder, what is wrong with it, or None where there is no such folder."""
    try:
        if folder.name.startswith(".") or not folder.is_dir():
            return None
        return pack.parse(_read_files(folder.resolve()))
    except PackError as error:
        return error
    except OSError as error:
        return PackError(Path(error.filename or FILE).name, 0, f"cannot be read: {error.strerror}; mend that")


def _read_files(root: Path) -> dict[str, bytes]:
    """Returns the files of a pack by relative path. Nothing outside of the folder is read, whatever links say."""
    files: dict[str, bytes] = {}
    total_bytes = 0
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        with path.open("rb") as file:
            files[name] = file.read(MAX_FILE_BYTES + 1)
        total_bytes += len(files[name])
        if len(files[name]) > MAX_FILE_BYTES:
            raise PackError(name, 0, f"larger than {MAX_FILE_BYTES} bytes; split it")
        if total_bytes > MAX_PACK_BYTES:
            raise PackError(name, 0, f"the pack has more than {MAX_PACK_BYTES} bytes; remove some files")
    return files


def _walk(root: Path) -> Iterator[Path]:
    """Yields the pack's own files: not hidden ones, an editor's backups or Python's caches."""
    pending, seen = [root], {str(root)}
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.name.startswith(".") or path.name.endswith("~") or path.name == "__pycache__":
                continue
            name, real = path.relative_to(root).as_posix(), os.path.realpath(path)
            if not name.isprintable():
                raise PackError(ascii(name), 0, "the name has characters that do not print; choose another")
            if not Path(real).is_relative_to(root):
                raise PackError(name, 0, "a link that leads out of the pack; put the file itself there")
            if real in seen:
                raise PackError(name, 0, "a link to what is in the pack already; remove it")
            seen.add(real)
            if len(seen) > MAX_FILES + 1:  # The pack's folder is seen, too.
                raise PackError(name, 0, f"the pack has more than {MAX_FILES} files and directories; remove some")
            if path.is_dir():
                pending.append(path)
            elif path.is_file():
                yield path
            else:
                raise PackError(name, 0, "neither a file nor a directory; remove it")


def _duplicate(new: Pack, owner: Path) -> PackError:
    problem = f"id: the pack in folder {owner.name!r} has {new.personality_id!r} already; choose another"
    return PackError(FILE, new.id_line, problem)


def _rejection(folder: Path, failure: PackError) -> AgentShellError:
    name = f"{folder.parent.name}/{folder.name}"
    return AgentShellError(
        error_pb2.ERROR_REASON_PACK_INVALID,
        f"{name}/{failure}",
        metadata={"file": f"{name}/{failure.file}", "line": str(failure.line)},
    )
