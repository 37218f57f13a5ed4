"""Assigns partitions to the members of a group. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def assign(partitions: int, held: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Returns the partitions of each member, given what each holds now: balanced, with as few moves as possible.

    `held` names every member; new ones hold nothing. Shares differ by at most one.
    """
    if not held:
        return {}
    share, larger = divmod(partitions, len(held))
    result: dict[str, list[int]] = {}
    # Members that hold the most get the larger shares, so that they give up the least.
    for rank, member in enumerate(sorted(held, key=lambda name: (-len(held[name]), name))):
        quota = share + (rank < larger)
        result[member] = sorted(held[member])[:quota]
    kept = {partition for owned in result.values() for partition in owned}
    free = iter(sorted(set(range(partitions)) - kept))
    for rank, owned in enumerate(result.values()):
        quota = share + (rank < larger)
        owned.extend(next(free) for _ in range(quota - len(owned)))
    return {member: tuple(sorted(owned)) for member, owned in result.items()}
