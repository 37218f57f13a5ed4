"""What a process leaves in its data directory for others to find: its addresses, its sockets, its keys."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agentshell.mesh.config import Config
from agentshell.mesh.credentials import Keyring
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

_SOCKET_PATH_BYTES = 100  # The system's limit is 107.


class Endpoints(BaseModel):
    """The addresses of a running process, left in its data directory for the command line to find."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    address: str
    http_address: str
    pid: int


def make(data_dir: Path) -> None:
    """Makes the directory, for its owner alone, unless it exists. Raises CONFIG_INVALID if that fails."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data_dir / "run").mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise AgentShellError(
            error_pb2.ERROR_REASON_CONFIG_INVALID,
            f"{error.filename}: {error.strerror}; set configuration key 'data_dir' to a directory that can be written",
            metadata={"key": "data_dir", "value": str(data_dir)},
        ) from None


def endpoints_file(data_dir: Path) -> Path:
    """Returns the file in which a process that serves clients leaves its `Endpoints`."""
    return data_dir / "run" / "endpoints.json"


def key_file(data_dir: Path) -> Path:
    """Returns the file that holds the default tenant's API key."""
    return data_dir / "default.key"


def mesh_key_file(config: Config) -> Path:
    """Returns the file that holds, or will hold, the mesh's own secret."""
    return config.auth.mesh_key_file or config.data_dir / "mesh.key"


def keyring(config: Config) -> Keyring:
    """Returns the keyring of the configured files, or of those in the data directory."""
    keys_file = config.auth.keys_file or config.data_dir / "api-keys.json"
    return Keyring(keys_file, mesh_key_file(config))


def socket(data_dir: Path, name: str) -> str:
    """Returns the address of a socket in the data directory; if its path is too long, through a short link.

    The link is in a directory that is this user's alone, and is named by a digest of its target.
    """
    run = data_dir.absolute() / "run"
    path = run / f"{name}.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(run)).hexdigest()[:16]
        short = Path(tempfile.gettempdir()) / f"agentshell-{os.getuid()}"
        short.mkdir(mode=0o700, exist_ok=True)
        status = short.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                f"{short} does not belong to this user alone: remove it, or set server.mesh_address to unix:PATH",
            )
        link = short / digest
        if not link.is_symlink():
            link.symlink_to(run)
        path = link / f"{name}.sock"
    return f"unix:{path}"
