"""Tries what a locked process must not be able to do: a lock counts for what it stops here, not for what it claims.

Uses only the standard library. Nothing that it tries does harm if it is not stopped.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_PARENT: Final = os.getppid()  # Read while that is still allowed.
_SCRATCH: Final = tempfile.gettempdir()
_NOWHERE: Final = "/nowhere/at/all"
_EXECUTABLE, _PRIVATE_ANONYMOUS, _PAGE_BYTES = 0x7, 0x22, 4096
_CLONE_NEWUSER = 0x10000000
_NEW_CODE: Final = "make code"


def escapes(*, new_code: bool) -> list[str]:
    """Returns what this process can still do that it must not; empty: the lock holds.

    `new_code` says that memory may become executable.
    """
    return [name for name, attempt in _ATTEMPTS.items() if _succeeds(attempt) and not (new_code and name == _NEW_CODE)]


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, ValueError):
        return False
    return True


def _call(name: str, *arguments: object) -> None:
    """Makes a system call that cannot succeed as called. Raises PermissionError if it is refused outright."""
    if getattr(_libc, name)(*arguments) < 0 and ctypes.get_errno() == errno.EPERM:
        raise PermissionError(name)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _make_code() -> None:
    mapping = _libc.mmap
    mapping.restype = ctypes.c_void_p
    made = mapping(None, ctypes.c_size_t(_PAGE_BYTES), _EXECUTABLE, _PRIVATE_ANONYMOUS, -1, 0)
    if made == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "refused")


_ATTEMPTS: Final[Mapping[str, Callable[[], object]]] = {
    "read a file of the host": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "list a directory of the host": lambda: os.listdir("/home"),  # noqa: PTH208 - light
    "read the host's environment": lambda: os.open(f"/proc/{_PARENT}/environ", os.O_RDONLY),
    "write a file": lambda: os.open(_SCRATCH, os.O_TMPFILE | os.O_WRONLY),
    "open a TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "open a UDP socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "open a unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "open a vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "start a process": _fork,
    "run a program": lambda: _call("execv", _NOWHERE.encode(), None),
    "signal its parent": lambda: os.kill(_PARENT, 0),
    "trace its parent": lambda: _call("ptrace", -1, _PARENT, None, None),
    "make a namespace": lambda: _call("unshare", _CLONE_NEWUSER),
    "mount": lambda: _call("mount", None, _NOWHERE.encode(), None, 0, None),
    "become root": lambda: os.setuid(0),
    _NEW_CODE: _make_code,
}
