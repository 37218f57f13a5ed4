"""Tracks how far an owner has read its partitions, and how far it may commit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agentshell.log.log import Ack


class Progress:
    """Positions in partitions: what has been read, where replay ends, and what has been committed."""

    def __init__(self, partitions: Iterable[int], committed: Mapping[int, int], ends: Sequence[int]) -> None:
        self._positions = {partition: committed.get(partition, 0) for partition in partitions}
        self._replay_ends = {p: ends[p] for p, position in self._positions.items() if position < ends[p]}
        self._committed = dict(committed)
        self._written: dict[tuple[int, int], str] = {}  # place -> turn

    def position(self, partition: int) -> int:
        """Returns the offset to read next."""
        return self._positions[partition]

    def is_replaying(self, partition: int) -> bool:
        """Returns whether some of what was there at the start is still unread: nothing is decided before that."""
        return partition in self._replay_ends

    @property
    def has_replayed(self) -> bool:
        """Whether everything that was there at the start has been read."""
        return not self._replay_ends

    def wrote(self, turn_id: str, ack: Ack) -> None:
        """Records what the owner has written itself, to recognise it when it is read back."""
        self._written[ack.partition, ack.offset] = turn_id

    def read(self, partition: int, offset: int) -> str:
        """Records that a record was read. Returns its turn if the owner wrote it itself, or else an empty string."""
        self._positions[partition] = offset + 1
        return self._written.pop((partition, offset), "")

    def end_replays(self, *, all_read: bool) -> list[int]:
        """Returns the partitions whose replay has just ended. `all_read` means that nothing is left to read."""
        over = [p for p, end in self._replay_ends.items() if all_read or self._positions[p] >= end]
        for partition in over:
            del self._replay_ends[partition]
        return over

    def to_commit(self, open_places: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Returns the offsets to commit: up to a partition's oldest open turn, or else all that was read."""
        progress = {p: position for p, position in self._positions.items() if p not in self._replay_ends}
        for partition, offset in open_places:
            if partition in progress:
                progress[partition] = min(progress[partition], offset)
        return {p: offset for p, offset in progress.items() if offset > self._committed.get(p, 0)}

    def committed(self, offsets: Mapping[int, int]) -> None:
        """Records what was committed."""
        self._committed.update(offsets)
