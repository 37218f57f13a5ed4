"""The versions of each personality that can be asked for: the newest, and those that turns may be pinned to."""

from __future__ import annotations

from bisect import bisect_right

from kfm.personality.v1.personality_service_pb2 import Personality

VERSIONS_KEPT = 8
REMOVED_KEPT = 256


class Registry:
    """Keeps the last `VERSIONS_KEPT` versions of each personality, of the last `REMOVED_KEPT` removed ones too."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, Personality]] = {}  # By id, then by digest, oldest first.
        self._removed: dict[str, None] = {}  # Oldest first.

    def ids(self) -> list[str]:
        """Returns the ids of the personalities that are loaded, sorted."""
        return sorted(self._versions.keys() - self._removed.keys())

    def load(self, personality: Personality) -> None:
        """Makes this the newest version of its personality."""
        self._removed.pop(personality.personality_id, None)
        versions = self._versions.setdefault(personality.personality_id, {})
        versions.pop(personality.digest, None)
        versions[personality.digest] = personality
        if len(versions) > VERSIONS_KEPT:
            del versions[next(iter(versions))]

    def remove(self, personality_id: str) -> None:
        """Removes a personality; those who know the digest of a version still get it."""
        self._removed[personality_id] = None
        if len(self._removed) > REMOVED_KEPT:
            oldest = next(iter(self._removed))
            del self._removed[oldest], self._versions[oldest]

    def newest(self, personality_id: str) -> Personality | None:
        """Returns the newest version; None where no such personality is loaded."""
        if personality_id in self._removed or personality_id not in self._versions:
            return None
        return next(reversed(self._versions[personality_id].values()))

    def version(self, personality_id: str, digest: str) -> Personality | None:
        """Returns the version with this digest; None where it is not kept."""
        return self._versions.get(personality_id, {}).get(digest)

    def page(self, after_id: str, size: int) -> tuple[list[Personality], bool]:
        """Returns the newest versions of up to `size` personalities after an id, and whether more follow."""
        ids = self.ids()
        start = bisect_right(ids, after_id)
        page = [newest for id_ in ids[start : start + size] if (newest := self.newest(id_))]
        return page, start + size < len(ids)
