"""Gives up all rights of this process, for good: Landlock, seccomp, resource limits, and root.

Linux on x86-64 and ARM64. Uses only the standard library: the native tier runs it where nothing else is installed.
`canary` finds out by trying whether the lock holds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Final

NOBODY: Final = 65534

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_SECCOMP, _LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = "seccomp", 444, 445, 446
_SIGKILL = 9

# Rights that each version of Landlock added: to files, to TCP, and to what is outside the domain.
_FILE_RIGHTS_BY_ABI: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_RIGHTS_BY_ABI: Final = {4: 0b11}
_SCOPES_BY_ABI: Final = {6: 0b11}
_READ_FILE_AND_DIR_AND_EXECUTE = 0b1101  # `leave_calls` still forbids running programs.
_RULE_PATH_BENEATH = 1
_LANDLOCK_VERSION_FLAG = 1

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of system calls: on x86-64, and on ARM64 (None: it has no such call).
_CALLS: Final[Mapping[str, tuple[int, int | None]]] = {
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "dup": (32, 23),
    "epoll_pwait": (281, 22),
    "epoll_wait": (232, None),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "ioctl": (16, 29),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "setitimer": (38, 103),
    "sigaltstack": (131, 132),
    "stat": (4, None),
    "statx": (332, 291),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "write": (1, 64),
    "writev": (20, 66),
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EVERYBODY: Final = _names(
    "brk clock_getres clock_gettime clock_nanosleep close epoll_pwait epoll_wait exit exit_group fstat futex getpid "
    "getrandom gettid gettimeofday lseek madvise mremap munmap poll ppoll read restart_syscall rseq rt_sigreturn "
    "sched_getaffinity sched_yield sigaltstack write"
)
RUNTIME_CALLS: Final = _names("membarrier rt_sigprocmask setitimer")
"""What a WebAssembly runtime needs in addition."""
INTERPRETER_CALLS: Final = _names(
    "dup fcntl getcwd getdents64 getegid geteuid getgid getppid getrusage getuid ioctl lstat newfstatat open openat "
    "pread64 readlink readlinkat stat statx sysinfo uname writev"
)
"""What an interpreter that reads its library from disk needs in addition; Landlock limits which files."""

# Instructions of seccomp filters, and their verdicts.
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000
_PROT_EXEC = 0x4

_libc = ctypes.CDLL(None, use_errno=True)


def leave_files(readable: Iterable[str] = ()) -> None:
    """Gives up root, and all files but those below `readable`, which may be read. Descriptors stay open.

    Threads that start later are bound too, but existing ones are not. Raises OSError if the kernel cannot do it.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _restrict_files(readable)
    _become_nobody()
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)  # After the change of user, which clears it.


def leave_calls(calls: Collection[str], *, threads: bool, new_code: bool) -> None:
    """Gives up, in all threads, all system calls but `calls` and those for memory, time and open descriptors.

    `threads` lets threads start, and `new_code` lets memory become executable. Raises OSError if the kernel cannot do
    it.
    """
    _restrict_calls(program(platform.machine(), calls, threads=threads, new_code=new_code))


def limit(*, memory_bytes: int, files: int) -> None:
    """Limits what this process may use: writable memory, descriptors, no files written, no core dumps."""
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, files),
    ):
        resource.setrlimit(kind, (most, most))


def landlock_version() -> int:
    """Returns which version of Landlock the kernel has; 0: none."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION_FLAG))


def _restrict_files(readable: Iterable[str]) -> None:
    version = landlock_version()
    if not version:
        raise OSError(errno.ENOSYS, "the kernel has no Landlock, or has it switched off")
    handled = [_sum(rights, version) for rights in (_FILE_RIGHTS_BY_ABI, _NET_RIGHTS_BY_ABI, _SCOPES_BY_ABI)]
    attributes = struct.pack("=QQQ", *handled)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    for path in readable:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ_FILE_AND_DIR_AND_EXECUTE, beneath)
        _check(_libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
        os.close(beneath)
    _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _sum(rights_by_abi: Mapping[int, int], version: int) -> int:
    return sum(rights for abi, rights in rights_by_abi.items() if abi <= version)


def _become_nobody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def program(machine: str, calls: Collection[str], *, threads: bool, new_code: bool) -> bytes:
    """Returns a filter that allows `calls` and what everybody needs, and answers EPERM to the rest."""
    if machine not in _AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"there is no seccomp filter for {machine}, only for x86_64 and aarch64")
    column = list(_AUDIT_ARCH).index(machine)
    steps = [
        _step(_LOAD, _ARCH_OFFSET),
        _step(_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_OFFSET),
        _step(_GREATER_OR_EQUAL, _X32_BIT, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for name in sorted(_EVERYBODY | set(calls)):
        if (number := _CALLS[name][column]) is not None:
            steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    for name in ("mmap", "mprotect"):
        unless = _step(_ANY_BIT, 0 if new_code else _PROT_EXEC, 1, 0)
        steps += _examine(_number(name, column), argument=2, test=unless)
    if threads:
        steps += _examine(_number("clone", column), argument=0, test=_step(_ANY_BIT, _CLONE_THREAD, 0, 1))
    # A filter cannot see its flags, so it does not exist here: the C library falls back to `clone`.
    steps += [_step(_EQUAL, _number("clone3", column), 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    return b"".join([*steps, _step(_RETURN, _ERROR | errno.EPERM)])


def _examine(number: int, *, argument: int, test: bytes) -> list[bytes]:
    """Allows a call whose argument passes `test`, a step that skips none if it does, and one if it does not."""
    return [
        _step(_EQUAL, number, 0, 4),
        _step(_LOAD, _ARGUMENTS_OFFSET + 8 * argument),
        test,
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _ERROR | errno.EPERM),
    ]


def _number(name: str, column: int) -> int:
    number = _CALLS[name][column]
    assert number is not None  # noqa: S101 - the names are ours
    return number


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _restrict_calls(program: bytes) -> None:
    steps = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(steps))
    number = _number(_SECCOMP, list(_AUDIT_ARCH).index(platform.machine()))
    if _check(_libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, described)):
        raise OSError(errno.EBUSY, "a thread of this process has a filter of its own")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
