"""Reads a pack's files from a folder or an archive: bounded in number and size, and nothing from elsewhere."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from agentshell.personality.manifest import FILE
from agentshell.personality.yaml_file import PackError

MAX_FILES = 1000
MAX_FILE_BYTES = 1024 * 1024
MAX_PACK_BYTES = 16 * 1024 * 1024
# What an archive adds per file: a header, the padding of the last block, and two blocks of PAX header if need be.
_MAX_TAR_BYTES_PER_FILE = 4 * tarfile.BLOCKSIZE


def of_folder(root: Path) -> dict[str, bytes]:
    """Returns the files of a pack by relative path. Reads nothing outside the folder, wherever links lead.

    Raises PackError and OSError.
    """
    files = _Files()
    for name, path in _walk(str(root)):
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs as much as the reading
            files.add(name, file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1))
    return files.contents


def of_archive(content: bytes) -> dict[str, bytes]:
    """Returns the files of a pack in a `.tar.gz`, by relative path; a single folder around them all is stripped.

    Writes nothing anywhere, and accepts only plain files. Raises PackError.
    """
    files = _Files()
    try:
        with tarfile.open(fileobj=io.BytesIO(_unzipped(content)), mode="r:") as archive:
            for member in archive:
                name = str(PurePosixPath(member.name))
                if member.isdir() or any(map(_is_passed_over, name.split("/"))):
                    continue
                _check_name(name)
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    raise PackError(name, 0, "neither a file nor a directory; remove it")
                if name in files.contents:
                    raise PackError(name, 0, "appears twice in the archive; remove one")
                files.add(name, file.read(MAX_FILE_BYTES + 1))
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, PackError):
            raise
        raise PackError("", 0, f"not a tar archive: {error}; make it with `agentshell packs pack`") from None
    return _unwrapped(files.contents)


def to_archive(files: Mapping[str, bytes]) -> bytes:
    """Returns a `.tar.gz` of files: the same bytes for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o644
            archive.addfile(member, io.BytesIO(files[name]))
    return gzip.compress(packed.getvalue(), mtime=0)


class _Files:
    """Collects files, within the limits of a pack."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self._bytes = 0

    def add(self, name: str, content: bytes) -> None:
        self.contents[name] = content
        self._bytes += len(content)
        if len(content) > MAX_FILE_BYTES:
            raise PackError(name, 0, f"larger than {MAX_FILE_BYTES} bytes; split it")
        if self._bytes > MAX_PACK_BYTES:
            raise PackError(name, 0, f"the pack has more than {MAX_PACK_BYTES} bytes; remove some files")
        if len(self.contents) > MAX_FILES:
            raise _too_many(name)


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """Yields the pack's own files, by name and path: no hidden ones, editors' backups or Python's caches.

    `root` is its real path, without links.
    """
    pending, seen = [("", root)], {root}
    while pending:
        within, directory = pending.pop()
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if _is_passed_over(entry.name):
                continue
            name, real = within + entry.name, entry.path
            _check_name(name)
            if entry.is_symlink():
                real = os.path.realpath(real)
            if not real.startswith(f"{root}/") and real != root:
                raise PackError(name, 0, "a link that leads out of the pack; put the file itself there")
            if real in seen:
                raise PackError(name, 0, "a link to what the pack already contains; remove it")
            seen.add(real)
            if len(seen) > MAX_FILES + 1:  # The pack's folder is in `seen` too.
                raise _too_many(name)
            if entry.is_file(follow_symlinks=False) or os.path.isfile(real):  # noqa: PTH113 - as above
                yield name, real
            elif os.path.isdir(real):  # noqa: PTH112
                pending.append((f"{name}/", real))
            else:
                raise PackError(name, 0, "neither a file nor a directory; remove it")


def _is_passed_over(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part.endswith("~") or part == "__pycache__"


def _check_name(name: str) -> None:
    if not name.isprintable():
        raise PackError(ascii(name), 0, "the name has unprintable characters; choose another")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise PackError(name, 0, "the name leads out of the pack; choose another")


def _too_many(name: str) -> PackError:
    return PackError(name, 0, f"the pack has more than {MAX_FILES} files and directories; remove some")


def _unzipped(content: bytes) -> bytes:
    most = MAX_PACK_BYTES + MAX_FILES * _MAX_TAR_BYTES_PER_FILE
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unzipped = unzip.decompress(content, most)
    except zlib.error as error:
        raise PackError("", 0, f"not gzip: {error}; make it with `agentshell packs pack`") from None
    if unzip.unconsumed_tail:
        raise PackError("", 0, f"the pack has more than {MAX_PACK_BYTES} bytes; remove some files")
    if not unzip.eof:
        raise PackError("", 0, "cut short: the gzip stream has no end; load it again")
    return unzipped


def _unwrapped(files: dict[str, bytes]) -> dict[str, bytes]:
    tops = {name.partition("/")[0] for name in files}
    if FILE in files or len(tops) != 1:
        return files
    return {name.partition("/")[2]: content for name, content in files.items()}
