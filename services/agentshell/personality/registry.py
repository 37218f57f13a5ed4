"""The versions of each personality that can be requested: live ones, and those that turns are pinned to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from agentshell.personality.version import precedence
from kfm.personality.v1.personality_service_pb2 import Personality

VERSIONS_KEPT = 8
REMOVED_KEPT = 256


class Registry:
    """Keeps the live versions of each personality and its last `VERSIONS_KEPT`, also for `REMOVED_KEPT` removed ones.

    `chosen` has the version that answers if none is requested, by id; for other ids it is the newest.
    """

    def __init__(self, chosen: Mapping[str, str] | None = None) -> None:
        self._chosen = dict(chosen or {})
        self._live: dict[str, dict[str, Personality]] = {}  # By id, then by version, the newest first.
        self._kept: dict[str, dict[str, Personality]] = {}  # By id, then by digest, oldest first.
        self._removed: dict[str, None] = {}  # Oldest first.
        self._ids: list[str] | None = None

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the personalities that are live, sorted."""
        if self._ids is None:
            self._ids = sorted(self._live)
        return self._ids

    def load(self, personality: Personality) -> None:
        """Makes a version of a personality live, in place of any with the same version."""
        personality_id = personality.personality_id
        self._removed.pop(personality_id, None)
        live = {**self._live.get(personality_id, {}), personality.version: personality}
        self._live[personality_id] = {name: live[name] for name in sorted(live, key=precedence, reverse=True)}
        kept = self._kept.setdefault(personality_id, {})
        kept.pop(personality.digest, None)
        kept[personality.digest] = personality
        self._ids = None
        self._forget(personality_id)

    def remove(self, personality_id: str, version: str) -> None:
        """Removes a live version; it can still be had by its digest."""
        live = self._live[personality_id]
        del live[version]
        self._forget(personality_id)
        if live:
            return
        del self._live[personality_id]
        self._ids = None
        self._removed[personality_id] = None
        if len(self._removed) > REMOVED_KEPT:
            oldest = next(iter(self._removed))
            del self._removed[oldest], self._kept[oldest]

    def default(self, personality_id: str) -> Personality | None:
        """Returns the version that answers if none is requested; None if it is not live."""
        live = self._live.get(personality_id, {})
        return live.get(self._chosen.get(personality_id) or next(iter(live), ""))

    def live(self, personality_id: str, version: str) -> Personality | None:
        """Returns a version; None if it is not live."""
        return self._live.get(personality_id, {}).get(version)

    def pinned(self, personality_id: str, digest: str) -> Personality | None:
        """Returns the version with this digest; None if it is not kept."""
        return self._kept.get(personality_id, {}).get(digest)

    def versions(self, personality_id: str) -> list[Personality]:
        """Returns the live versions, the default one first, then the newest."""
        default = self.default(personality_id)
        return sorted(self._live.get(personality_id, {}).values(), key=lambda one: one is not default)

    def after(self, personality_id: str) -> Sequence[str]:
        """Returns the ids after this one, sorted."""
        return self.ids[bisect_right(self.ids, personality_id) :]

    def _forget(self, personality_id: str) -> None:
        """Forgets the oldest versions that are not live, beyond `VERSIONS_KEPT`."""
        kept = self._kept[personality_id]
        live = {one.digest for one in self._live[personality_id].values()}
        past = [digest for digest in kept if digest not in live]
        for digest in past[: max(0, len(kept) - VERSIONS_KEPT)]:
            del kept[digest]
