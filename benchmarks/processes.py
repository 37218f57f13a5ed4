"""What processes use, by the kernel's count."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Returns the ids of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _status(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Returns the processor time that processes have used, to 10 ms each."""
    return sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _status(pid))) / _TICKS_PER_SECOND


def memory_bytes(pids: Iterable[int]) -> int:
    """Returns the resident memory of processes, with what they share counted once (their PSS)."""
    return sum(_bytes(pid, "Pss") for pid in pids)


def own_memory_bytes(pid: int) -> int:
    """Returns the memory that is a process's own, without shared memory and mapped files."""
    return _bytes(pid, "Anonymous")


def _bytes(pid: int, kind: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the kernel says nothing of the memory of process {pid}")


def _status(pid: int) -> list[str]:
    """Returns the fields of a process's `stat` after its name, from its state on; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
