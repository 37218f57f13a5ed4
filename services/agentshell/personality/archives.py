"""Packs in archives, from a file or over https: signed, with copies kept for when their origin cannot be reached."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Collection, Sequence
from http import HTTPStatus
from pathlib import Path

import httpx2

from agentshell.mesh.config import PersonalityConfig
from agentshell.mesh.errors import AgentShellError
from agentshell.personality import files, pack, signature
from agentshell.personality.pack import Pack
from agentshell.personality.yaml_file import PackError
from kfm.error.v1 import error_pb2

_HTTPS = "https://"
_FETCH_SECONDS = 30.0
_FETCHES_AT_ONCE = 4
_LOOK_SECONDS = 0.25


class Archives:
    """Reads the configured archives. A copy of each is kept in `cache`, if given, and serves if its origin fails.

    Raises CONFIG_INVALID for an invalid trusted key.
    """

    def __init__(self, config: PersonalityConfig, cache: Path | None) -> None:
        self.origins: Sequence[str] = tuple(dict.fromkeys(config.archives))
        self.files: Sequence[str] = tuple(origin for origin in self.origins if "://" not in origin)
        self._needs_signature = config.allow_unsigned != "all"
        self._keys = [_key(text) for text in config.trusted_keys]
        self._cache = cache

    async def read(self, origins: Collection[str]) -> dict[str, Pack | PackError]:
        """Returns the pack of each of these archives, or what is wrong with it, by its origin."""
        turnstile = asyncio.Semaphore(_FETCHES_AT_ONCE)

        async def one(origin: str) -> Pack | PackError:
            async with turnstile:
                return await self._read(origin)

        return dict(zip(origins, await asyncio.gather(*map(one, origins)), strict=True))

    async def watch(self) -> AsyncGenerator[set[str]]:
        """Yields those of `files` that have changed, or their signatures, forever; within a second of the last change.

        It polls the files and does not watch their directories, which may be busy with much else; files may be links.
        """
        told = before = self._stamps()  # Taken at once, so that any later change is reported.
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = await asyncio.to_thread(self._stamps)
            # A file that is still changing is left until it is whole.
            if changed := {file for file in self.files if now[file] == before[file] != told[file]}:
                told |= {file: now[file] for file in changed}
                yield changed
            before = now

    def _stamps(self) -> dict[str, object]:
        """Returns a stamp for each file, which differs once the file has changed."""
        return {file: (_stamp(Path(file)), _stamp(Path(f"{file}{signature.SUFFIX}"))) for file in self.files}

    def kept(self, origin: str) -> Pack | None:
        """Returns the last good pack of an archive, if its copy is still valid."""
        if self._cache is None:
            return None
        path = _copy(self._cache, origin)
        try:
            found = self._open(path.read_bytes(), Path(f"{path}{signature.SUFFIX}").read_bytes())
        except FileNotFoundError:
            return None
        return found if isinstance(found, Pack) else None

    async def _read(self, origin: str) -> Pack | PackError:
        try:
            content, signed = await _fetch(origin)
        except PackError as error:
            return error
        opened = await asyncio.to_thread(self._open, content, signed)
        if isinstance(opened, Pack) and self._cache:
            await asyncio.to_thread(_keep, self._cache, origin, content, signed)
        return opened

    def _open(self, content: bytes, signed: bytes) -> Pack | PackError:
        """Returns the pack in an archive; one without the signature that it needs is not opened."""
        try:
            if (signed or self._needs_signature) and not signature.is_by_one_of(self._keys, content, signed):
                raise PackError("", 0, _unsigned(signed))
            return pack.parse(files.of_archive(content))
        except PackError as error:
            return error


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _copy(cache: Path, origin: str) -> Path:
    return cache / f"{hashlib.sha256(origin.encode()).hexdigest()}.tar.gz"


def _keep(cache: Path, origin: str, content: bytes, signed: bytes) -> None:
    path = _copy(cache, origin)
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Each is written whole or not at all; a crash between the two is detected when they are read and checked.
    for name, data in ((path, content), (Path(f"{path}{signature.SUFFIX}"), signed)):
        new = name.with_name(f".{name.name}")
        new.write_bytes(data)
        new.replace(name)


async def _fetch(origin: str) -> tuple[bytes, bytes]:
    """Returns an archive and its signature, empty if there is none. Raises PackError."""
    if "://" not in origin:
        return await asyncio.to_thread(_read_files, Path(origin))
    if not origin.startswith(_HTTPS):
        raise PackError("", 0, "archives are read over https or from a file; name another")
    try:
        async with asyncio.timeout(_FETCH_SECONDS), _client() as client:
            content = await _get(client, origin, files.MAX_PACK_BYTES)
            signed = await _get(client, f"{origin}{signature.SUFFIX}", signature.SIGNATURE_BYTES, missing=b"")
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
        raise PackError("", 0, f"cannot be fetched: {error or 'no answer in time'}; fix that") from None
    return content, signed


def _client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(headers={"accept-encoding": "identity"})


async def _get(client: httpx2.AsyncClient, url: str, most_bytes: int, missing: bytes | None = None) -> bytes:
    content = b""
    async with client.stream("GET", url) as response:
        if response.status_code == HTTPStatus.NOT_FOUND and missing is not None:
            return missing
        if response.status_code != HTTPStatus.OK:
            raise PackError("", 0, f"cannot be fetched: {url} answers {response.status_code}; fix that")
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > most_bytes:
                raise PackError("", 0, f"{url} has more than {most_bytes} bytes; shorten it")
    return content


def _read_files(path: Path) -> tuple[bytes, bytes]:
    try:
        with path.open("rb") as file:
            content = file.read(files.MAX_PACK_BYTES + 1)
    except OSError as error:
        raise PackError("", 0, f"cannot be read: {error.strerror}; fix that") from None
    if len(content) > files.MAX_PACK_BYTES:
        raise PackError("", 0, f"has more than {files.MAX_PACK_BYTES} bytes; remove some files")
    try:
        with Path(f"{path}{signature.SUFFIX}").open("rb") as file:
            return content, file.read(signature.SIGNATURE_BYTES + 1)
    except OSError:
        return content, b""


def _unsigned(signed: bytes) -> str:
    if signed:
        return "its signature is not by any of 'personality.trusted_keys'; sign it again, or trust the key"
    return "has no signature beside it; make one with `agentshell packs pack --key`, or allow it by 'allow_unsigned'"


def _key(text: str) -> signature.Ed25519PublicKey:
    try:
        return signature.read_public_key(text)
    except ValueError as error:
        raise AgentShellError(
            error_pb2.ERROR_REASON_CONFIG_INVALID,
            f"configuration key 'personality.trusted_keys' = {text!r}: {error}",
            metadata={"key": "personality.trusted_keys", "value": text, "fix": "write the key as base64"},
        ) from None
