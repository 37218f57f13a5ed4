"""A schema's numbered SQL files, and which of them a database still needs."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass

_FILE = re.compile(r"(?P<number>\d{4})_(?P<name>\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """The file `NNNN_name.sql`. `sql` may contain several statements, and runs in a transaction."""

    number: int
    name: str
    sql: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql).hexdigest()

    @property
    def file(self) -> str:
        return f"{self.number:04}_{self.name}.sql"


def read(package: str) -> list[Migration]:
    """Returns the migrations in `package`, in order. Raises ValueError if their numbers are not 1, 2, 3..."""
    files = ((_FILE.fullmatch(file.name), file) for file in importlib.resources.files(package).iterdir())
    migrations = [Migration(int(match["number"]), match["name"], file.read_bytes()) for match, file in files if match]
    migrations.sort(key=lambda migration: migration.number)
    numbers = [migration.number for migration in migrations]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"{package} has the migrations {numbers}; they must be numbered 1, 2, 3... without a gap")
    return migrations


def pending(migrations: Sequence[Migration], applied: Sequence[tuple[int, str]]) -> Sequence[Migration]:
    """Returns the migrations to apply after `applied`, which lists (number, digest) pairs in order.

    Raises ValueError if an applied file is missing here or differs.
    """
    if len(applied) > len(migrations):
        raise ValueError(
            f"the database is at migration {applied[-1][0]} and this release knows {len(migrations)}: "
            "start the newer release that migrated it"
        )
    for migration, (number, digest) in zip(migrations, applied, strict=False):
        if (number, digest) != (migration.number, migration.digest):
            raise ValueError(
                f"{migration.file} differs from what was applied to this database: "
                "restore the file, and put the change in a new one with the next number"
            )
    return migrations[len(applied) :]
