"""Packs on disk: finds them, reads them, and keeps the last good version of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType] - a type of trio, not installed

from agentshell.mesh.errors import AgentShellError
from agentshell.personality import files, pack
from agentshell.personality.archives import Archives
from agentshell.personality.manifest import FILE
from agentshell.personality.pack import Pack
from agentshell.personality.yaml_file import PackError
from kfm.error.v1 import error_pb2

# A burst of writes is one change: it ends once nothing has come for a step, or at the latest after this.
_DEBOUNCE_MILLISECONDS = 400
_STEP_MILLISECONDS = 50


Origin = Path | str
"""Where a pack is: its folder, or its archive as the configuration names it."""
Version = tuple[str, str]
"""A personality's id and version."""


@dataclass(frozen=True, slots=True)
class Removed:
    """A version of a personality that is no longer there."""

    personality_id: str
    version: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """What is wrong with a pack. `serving` is the version of it that keeps serving, if any."""

    origin: Origin
    failure: PackError
    serving: Version | None

    def error(self) -> AgentShellError:
        """Returns it as an error of the mesh: PACK_INVALID."""
        name, failure = named(self.origin), self.failure
        metadata = {
            "source": name,
            "file": f"{name}/{failure.file}" if failure.file else name,
            "line": str(failure.line),
        }
        if self.serving:
            metadata |= {"personality_id": self.serving[0], "version": self.serving[1]}
        message = f"{name}/{failure}" if failure.file else f"{name}: {failure}"
        return AgentShellError(error_pb2.ERROR_REASON_PACK_INVALID, message, metadata=metadata)


Change = Pack | Removed | Rejected
"""A pack that was loaded or reloaded, one that was removed, or one that is malformed."""


def named(origin: Origin) -> str:
    """Returns where a pack is, for people to read: without the machine's paths or a URL's secrets."""
    if isinstance(origin, Path):
        return f"{origin.parent.name}/{origin.name}"
    address = urlsplit(origin)
    return f"{address.hostname}{address.path}" if address.netloc else Path(origin).name


def shipped() -> Path:
    """Returns where Agent Shell's own packs are: in the wheel, or at the root of the repository."""
    package = Path(__file__).parents[1]
    in_wheel = package / "personalities"
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "personalities"


class Loader:
    """Reads packs from directories, where each folder that is not hidden is one, and from archives.

    `packs` has those to serve, by id and version. `origins` has where each of them is.
    """

    def __init__(self, directories: Iterable[Path], archives: Archives | None = None, *, folders: bool = True) -> None:
        self._directories = tuple(dict.fromkeys(directory.resolve() for directory in directories))
        self._archives = archives
        self._allows_folders = folders
        self._good: dict[Origin, Pack] = {}
        self._failures: dict[Origin, PackError] = {}
        self.packs: dict[Version, Pack] = {}
        self.origins: dict[Version, Origin] = {}

    def check(self) -> None:
        """Raises CONFIG_INVALID if a directory cannot be read."""
        for directory in self._directories:
            _folders(directory)

    async def reload(self, origins: Collection[Origin] | None = None) -> list[Change]:
        """Reads these origins (None: all) and the folders that were malformed, and returns what changed.

        One call at a time. Raises CONFIG_INVALID if a directory cannot be read; then nothing has changed.
        """
        folders = None if origins is None else [one for one in origins if isinstance(one, Path)]
        found: dict[Origin, Pack | PackError | None] = {**await asyncio.to_thread(self._read, folders)}
        if self._archives:
            asked = self._archives.origins if origins is None else [one for one in origins if isinstance(one, str)]
            found |= await self._archives.read(asked)
            await asyncio.to_thread(self._recall, found)
        packs, failures = self.packs, self._failures
        self._settle(found)
        changes: list[Change] = [
            new
            for version, new in sorted(self.packs.items())
            if version not in packs or packs[version].digest != new.digest
        ]
        changes += [Removed(*version) for version in sorted(packs.keys() - self.packs.keys())]
        changes += [
            rejected for rejected in self.rejected() if str(rejected.failure) != str(failures.get(rejected.origin))
        ]
        return changes

    def rejected(self) -> list[Rejected]:
        """Returns the packs that are malformed now."""
        return [
            Rejected(origin, self._failures[origin], _version(last) if (last := self._good.get(origin)) else None)
            for origin in sorted(self._failures, key=str)
        ]

    async def watch(self) -> AsyncGenerator[set[Path]]:
        """Yields the folders in which something changed, forever; within half a second of the change."""
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
        known = [origin for origin in (*self._good, *self._failures) if isinstance(origin, Path)]
        if folders is None:
            folders = [*known, *(folder for directory in self._directories for folder in _folders(directory))]
        else:
            folders = [*folders, *(folder for folder in self._failures if isinstance(folder, Path))]
        return {folder: self._read_pack(folder) for folder in dict.fromkeys(folders)}

    def _read_pack(self, folder: Path) -> Pack | PackError | None:
        found = read_pack(folder, self._good.get(folder))
        if found and not self._allows_folders:
            return PackError("", 0, "a folder has no signature; configure its archive, or set 'allow_unsigned'")
        return found

    def _recall(self, found: Mapping[Origin, Pack | PackError | None]) -> None:
        """Falls back to the kept copies of archives that have failed and were not loaded before."""
        for origin, now in found.items():
            if self._archives and isinstance(origin, str) and isinstance(now, PackError) and origin not in self._good:
                last = self._archives.kept(origin)
                if last and _version(last) not in self.packs:
                    self._good[origin] = last

    def _settle(self, found: Mapping[Origin, Pack | PackError | None]) -> None:
        """Decides which packs serve. A version stays with the origin that has it; new ones go in configured order."""
        good = {origin: kept for origin, kept in self._good.items() if origin not in found}
        owners = {_version(kept): origin for origin, kept in good.items()}
        failures = {origin: failure for origin, failure in self._failures.items() if origin not in found}

        def is_new(origin: Origin) -> bool:
            new, last = found[origin], self._good.get(origin)
            return isinstance(new, Pack) and (last is None or _version(new) != _version(last))

        for origin in sorted(found, key=lambda origin: (is_new(origin), self._place(origin))):
            new: Pack | PackError | None = found[origin]
            if isinstance(new, Pack) and _version(new) in owners:
                new = _duplicate(new, owners[_version(new)])
            if isinstance(new, PackError):
                failures[origin] = new
                new = self._good.get(origin)
            if new and _version(new) not in owners:
                good[origin] = new
                owners[_version(new)] = origin
        self._good, self._failures = good, failures
        self.packs = {_version(kept): kept for kept in good.values()}
        self.origins = owners

    def _place(self, origin: Origin) -> tuple[int, str]:
        if isinstance(origin, Path):
            return self._directories.index(origin.parent), str(origin)
        return len(self._directories), origin


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


def read_pack(folder: Path, last: Pack | None = None) -> Pack | PackError | None:
    """Returns the pack in a folder, what is wrong with it, or None if the folder does not exist or is hidden.

    Returns `last` itself if the folder still has the files that it was made from.
    """
    try:
        if folder.name.startswith(".") or not folder.is_dir():
            return None
        found = files.of_folder(folder.resolve())
        return last if last and last.digest == pack.digest(found) else pack.parse(found)
    except PackError as error:
        return error
    except OSError as error:
        return PackError(Path(error.filename or FILE).name, 0, f"cannot be read: {error.strerror}; fix that")


def _version(read: Pack) -> Version:
    return read.manifest.id, read.manifest.version


def _duplicate(new: Pack, owner: Origin) -> PackError:
    read = new.manifest
    problem = f"{named(owner)} already has version {read.version} of {read.id!r}; choose another id, or version"
    return PackError(FILE, new.id_line, f"id: {problem}")
