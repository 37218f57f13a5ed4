"""Which versions of a personality can be asked for."""

from __future__ import annotations

from agentshell.personality.registry import REMOVED_KEPT, VERSIONS_KEPT, Registry
from kfm.personality.v1.personality_service_pb2 import Personality


def version(personality_id: str, digest: str) -> Personality:
    return Personality(personality_id=personality_id, digest=digest)


def test_the_last_versions_are_kept_and_older_ones_are_not() -> None:
    registry = Registry()
    versions = [version("a", f"sha256:{number}") for number in range(VERSIONS_KEPT + 1)]
    for one in versions:
        registry.load(one)
    assert [registry.version("a", one.digest) for one in versions] == [None, *versions[1:]]
    assert registry.newest("a") == versions[-1]


def test_a_version_that_comes_back_is_the_newest_again() -> None:
    registry = Registry()
    for digest in ("1", "2", "1"):
        registry.load(version("a", digest))
    assert registry.newest("a") == version("a", "1")
    assert registry.version("a", "2") == version("a", "2")


def test_a_removed_personality_is_found_by_digest_alone_until_it_is_loaded_again() -> None:
    registry = Registry()
    registry.load(version("a", "1"))
    registry.remove("a")
    assert (registry.ids(), registry.newest("a")) == ([], None)
    assert registry.version("a", "1") == version("a", "1")
    registry.load(version("a", "2"))
    assert (registry.ids(), registry.newest("a")) == (["a"], version("a", "2"))


def test_removed_personalities_are_kept_in_a_bounded_number() -> None:
    registry = Registry()
    for number in range(REMOVED_KEPT + 1):
        registry.load(version(str(number), "1"))
        registry.remove(str(number))
    assert registry.version("0", "1") is None
    assert registry.version("1", "1") == version("1", "1")


def test_pages_go_through_the_ids_in_order() -> None:
    registry = Registry()
    for personality_id in ("c", "a", "b"):
        registry.load(version(personality_id, "1"))
    assert registry.page("", 2) == ([version("a", "1"), version("b", "1")], True)
    assert registry.page("b", 2) == ([version("c", "1")], False)
    assert registry.page("c", 2) == ([], False)
