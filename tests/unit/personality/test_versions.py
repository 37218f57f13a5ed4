"""The versions of personalities that are kept on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

from agentshell.personality.versions import KEPT_DAYS, Versions
from kfm.personality.v1.personality_service_pb2 import Personality


def version(number: int) -> Personality:
    return Personality(personality_id="a", version=f"{number}.0.0", digest=f"sha256:{number:064x}")


def test_what_was_not_live_for_long_is_forgotten_and_what_is_live_is_not(tmp_path: Path) -> None:
    versions, kept = Versions(tmp_path), [version(number) for number in range(3)]
    versions.keep(kept)
    long_ago = time.time() - (KEPT_DAYS + 1) * 24 * 3600
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    versions.keep(kept[:1])
    (tmp_path / "somebody's").touch()
    versions.forget()
    assert [versions.find("a", one.digest) for one in kept] == [kept[0], None, None]
    assert (tmp_path / "somebody's").exists()


def test_what_is_broken_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    versions.keep([version(1)])
    next(tmp_path.iterdir()).write_bytes(b"\xff")
    assert versions.find("a", version(1).digest) is None


def test_without_a_directory_nothing_is_kept() -> None:
    versions = Versions(None)
    versions.keep([version(1)])
    versions.forget()
    assert versions.find("a", version(1).digest) is None
