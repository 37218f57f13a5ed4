"""Migrations as decisions: which files exist, and which a database still needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentshell.db import migration
from agentshell.db.migration import Migration

_MIGRATIONS = [Migration(number, f"part{number}", b"SELECT %d" % number) for number in range(1, 6)]
_APPLIED = [(m.number, m.digest) for m in _MIGRATIONS]


def _package(path: Path, name: str, *files: str) -> str:
    package = path / name
    package.mkdir()
    for file in files:
        (package / file).write_text("SELECT 1")
    sys.path_importer_cache.pop(str(path), None)
    return name


def test_the_numbered_files_of_a_package_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = _package(tmp_path, "ordered_migrations", "0002_b.sql", "0001_a.sql", "notes.txt", "12_c.sql")
    assert migration.read(package) == [Migration(1, "a", b"SELECT 1"), Migration(2, "b", b"SELECT 1")]


@pytest.mark.parametrize(
    ("name", "files"),
    [("none", []), ("gap", ["0001_a.sql", "0003_c.sql"]), ("twice", ["0001_a.sql", "0001_b.sql"])],
)
def test_numbers_that_are_missing_or_repeated_are_refused(
    name: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = _package(tmp_path, f"{name}_migrations", *files)
    with pytest.raises(ValueError, match=f"{package} has the migrations"):
        migration.read(package)


@given(st.integers(0, len(_MIGRATIONS)))
def test_what_is_pending_is_what_follows_the_applied(count: int) -> None:
    assert migration.pending(_MIGRATIONS, _APPLIED[:count]) == _MIGRATIONS[count:]


@given(st.integers(1, len(_MIGRATIONS)), st.data())
def test_a_changed_file_is_refused_by_its_name(count: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, count - 1))
    applied = _APPLIED[:count]
    applied[position] = (applied[position][0], "another digest")
    with pytest.raises(ValueError, match=_MIGRATIONS[position].file):
        migration.pending(_MIGRATIONS, applied)


def test_a_database_of_a_newer_release_is_refused() -> None:
    with pytest.raises(ValueError, match="at migration 5 and this release knows 4"):
        migration.pending(_MIGRATIONS[:4], _APPLIED)
