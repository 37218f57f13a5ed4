"""The versions of personalities on disk: a turn keeps the version that it began with, even after a restart."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import DecodeError

from kfm.personality.v1.personality_service_pb2 import Personality

KEPT_DAYS = 90
_SUFFIX = ".binpb"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Versions:
    """Keeps each version in `directory` for `KEPT_DAYS` after it was last live; without one, nowhere.

    All methods block: call them in a thread. They raise OSError.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def keep(self, personalities: Iterable[Personality]) -> None:
        """Keeps versions that are live, or just were."""
        for personality in personalities:
            path = self._path(personality.digest)
            if path is None:
                continue
            try:
                os.utime(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                new = path.with_name(f".{path.name}")  # So that it is written whole or not at all.
                new.write_bytes(personality.SerializeToString())
                new.replace(path)

    def find(self, personality_id: str, digest: str) -> Personality | None:
        """Returns a version; None if it is not kept."""
        path = self._path(digest)
        try:
            found = Personality.FromString(path.read_bytes()) if path else None
        except (FileNotFoundError, DecodeError):
            return None
        return found if found and found.personality_id == personality_id else None

    def forget(self) -> None:
        """Deletes versions that were last live more than `KEPT_DAYS` ago."""
        oldest = time.time() - KEPT_DAYS * 24 * 3600
        for path in self._directory.glob(f"*{_SUFFIX}") if self._directory else ():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path | None:
        known = _DIGEST.fullmatch(digest)  # It comes from a caller.
        return self._directory / f"{known[1]}{_SUFFIX}" if self._directory and known else None
