"""A group folded from its journal in Iggy: who holds which partitions, and what is committed. Pure.

Each change is an entry in the journal, and all processes fold the same entries in the same order, by the server's
clock. So all agree on who is a member, and on whether a commit came in time, without a shared lock or clock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agentshell.log.assignment import assign


@dataclass(slots=True)
class Member:
    """A member of a group. It is alive until `lease_seconds` after `seen_at`, in seconds of the server's clock."""

    process: str
    lease_seconds: float
    seen_at: float
    partitions: tuple[int, ...] = ()


def join(process: str, member: str, lease_seconds: float) -> bytes:
    """Returns the entry with which a process adds a member to the group, or reports it alive."""
    return _entry("join", process, member=member, lease_seconds=lease_seconds)


def leave(process: str, members: Iterable[str]) -> bytes:
    """Returns the entry with which a process removes members that are still its own."""
    return _entry("leave", process, members=list(members))


def renew(process: str, members: Iterable[str]) -> bytes:
    """Returns the entry with which a process reports members alive. Any entry, even for none, expels silent ones."""
    return _entry("renew", process, members=list(members))


def gone(process: str, others: Iterable[str]) -> bytes:
    """Returns the entry with which a process reports that others, and so all their members, have ended."""
    return _entry("gone", process, processes=list(others))


def commit(process: str, member: str, generation: int, offsets: Mapping[int, int]) -> bytes:
    """Returns the entry that commits offsets if the member still holds its partitions in that generation."""
    return _entry("commit", process, member=member, generation=generation, offsets=list(offsets.items()))


def snapshot(process: str, group: Group) -> bytes:
    """Returns the entry that replaces all entries before `group.position`, so that they can be deleted."""
    members = {name: asdict(member) for name, member in group.members.items()}
    return _entry(
        "snapshot",
        process,
        position=group.position,
        generation=group.generation,
        members=members,
        committed=list(group.committed.items()),
    )


def author(entry: bytes) -> str:
    """Returns the process that wrote an entry."""
    return str(json.loads(entry)["process"])


class Group:
    """The state of a group after the entries before `position`, for a topic with `partitions` partitions."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self.position = 0
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.committed: dict[int, int] = {}

    @property
    def processes(self) -> set[str]:
        """The processes that have members."""
        return {member.process for member in self.members.values()}

    def restore(self, entries: Iterable[bytes]) -> bool:
        """Restores the last snapshot among the entries. Returns False if there is none."""
        snapshots = [said for entry in entries if (said := json.loads(entry))["entry"] == "snapshot"]
        if not snapshots:
            return False
        said = snapshots[-1]
        self.position, self.generation = said["position"], said["generation"]
        self.members = {
            name: Member(**(member | {"partitions": tuple(member["partitions"])}))
            for name, member in said["members"].items()
        }
        self.committed = dict(said["committed"])
        return True

    def apply(self, offset: int, entry: bytes, at: float) -> bool:
        """Folds the entry at `offset`, appended at `at` by the server's clock. Returns whether it took effect.

        Skips entries before `position`, which are already folded.
        """
        if offset < self.position:
            return False
        self.position = offset + 1
        said = json.loads(entry)
        changed = self._expel_silent(at, joining=said.get("member") if said["entry"] == "join" else None)
        effect = False
        match said["entry"]:
            case "join":
                changed |= self._join(said, at)
                effect = True
            case "leave":
                effect = self._remove({name for name in said["members"] if self._is_of(name, said)})
                changed |= effect
            case "gone":
                ended = set(said["processes"])
                effect = self._remove({name for name, member in self.members.items() if member.process in ended})
                changed |= effect
            case "renew":
                for name in said["members"]:
                    if self._is_of(name, said):
                        self.members[name].seen_at = at
                effect = True
            case "commit":
                effect = not changed and self._commit(said, at)
            case _:  # A snapshot, or an entry of a later release.
                pass
        if changed:
            self._redistribute()
        return effect

    def _join(self, said: Mapping[str, Any], at: float) -> bool:
        known = self.members.get(said["member"])
        partitions = known.partitions if known else ()
        self.members[said["member"]] = Member(said["process"], said["lease_seconds"], at, partitions)
        return known is None or known.process != said["process"]

    def _commit(self, said: Mapping[str, Any], at: float) -> bool:
        if not self._is_of(said["member"], said) or said["generation"] != self.generation:
            return False
        self.members[said["member"]].seen_at = at
        self.committed.update(dict(said["offsets"]))
        return True

    def _expel_silent(self, at: float, joining: str | None) -> bool:
        return self._remove(
            {
                name
                for name, member in self.members.items()
                if name != joining and at - member.seen_at > member.lease_seconds
            }
        )

    def _remove(self, names: Collection[str]) -> bool:
        for name in names:
            del self.members[name]
        return bool(names)

    def _is_of(self, name: str, said: Mapping[str, Any]) -> bool:
        member = self.members.get(name)
        return member is not None and member.process == said["process"]

    def _redistribute(self) -> None:
        self.generation += 1
        held = {name: member.partitions for name, member in self.members.items()}
        for name, partitions in assign(self._partitions, held).items():
            self.members[name].partitions = partitions


def _entry(entry: str, process: str, **said: object) -> bytes:
    return json.dumps({"entry": entry, "process": process, **said}, separators=(",", ":")).encode()
