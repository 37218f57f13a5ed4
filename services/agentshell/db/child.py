"""Becomes a program that ends with its parent: `python -I -S child.py PARENT_PID UID GID PROGRAM ARGUMENT...`.

This is a script rather than a `preexec_fn` because a process with threads must not run Python between fork and exec.
The death signal is set after the change of user, which would clear it. UID -1 keeps the current user.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, uid: int, gid: int, command: list[str]) -> None:
    """Replaces this process with `command` in a session of its own, so that ctrl-C reaches only our parent."""
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit("the parent has already exited")
    os.umask(0o077)
    os.execv(command[0], command)  # noqa: S606 - the command is our own supervisor's


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
