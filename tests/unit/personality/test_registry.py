"""Which versions of a personality can be requested."""

from __future__ import annotations

import pytest

from agentshell.personality.registry import REMOVED_KEPT, VERSIONS_KEPT, Registry
from agentshell.personality.version import precedence
from kfm.personality.v1.personality_service_pb2 import Personality


def version(personality_id: str, digest: str, version: str = "1.0.0") -> Personality:
    return Personality(personality_id=personality_id, digest=digest, version=version)


def test_the_last_versions_are_kept_and_older_ones_are_not() -> None:
    registry = Registry()
    versions = [version("a", f"sha256:{number}") for number in range(VERSIONS_KEPT + 1)]
    for one in versions:
        registry.load(one)
    assert [registry.pinned("a", one.digest) for one in versions] == [None, *versions[1:]]
    assert registry.default("a") == versions[-1]


def test_a_version_that_is_live_is_kept_however_many_come_after_it() -> None:
    registry = Registry()
    versions = [version("a", str(number), f"1.{number}.0") for number in range(VERSIONS_KEPT + 2)]
    for one in versions:
        registry.load(one)
    assert registry.pinned("a", "0") == versions[0]
    registry.remove("a", "1.0.0")
    assert registry.pinned("a", "0") is None


def test_a_version_that_comes_back_is_live_again() -> None:
    registry = Registry()
    for digest in ("1", "2", "1"):
        registry.load(version("a", digest))
    assert registry.default("a") == version("a", "1")
    assert registry.pinned("a", "2") == version("a", "2")


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.0.0", "1.0.1"),
        ("1.9.0", "1.10.0"),
        ("2.0.0-rc.1", "1.0.0"),
        ("1.0.0-alpha", "1.0.0-alpha.1"),
        ("1.0.0-alpha.1", "1.0.0-alpha.beta"),
        ("1.0.0-beta.2", "1.0.0-beta.11"),
        ("1.0.0-beta.11", "1.0.0-rc.1"),
        ("1.0.0-rc.1", "1.0.0"),
    ],
)
def test_the_newest_version_is_the_default_and_a_release_is_newer_than_any_pre_release(older: str, newer: str) -> None:
    assert precedence(older) < precedence(newer)
    for order in ((older, newer), (newer, older)):
        registry = Registry()
        for number in order:
            registry.load(version("a", number, number))
        assert registry.default("a") == version("a", newer, newer)
        assert [one.version for one in registry.versions("a")] == [newer, older]


def test_a_version_that_is_chosen_is_the_default_and_none_is_where_it_is_gone() -> None:
    registry = Registry({"a": "1.0.0"})
    for number in ("1.0.0", "1.2.0", "1.1.0"):
        registry.load(version("a", number, number))
    assert [one.version for one in registry.versions("a")] == ["1.0.0", "1.2.0", "1.1.0"]
    registry.remove("a", "1.0.0")
    assert registry.default("a") is None
    assert registry.live("a", "1.1.0") == version("a", "1.1.0", "1.1.0")


def test_a_removed_personality_is_found_by_digest_alone_until_it_is_loaded_again() -> None:
    registry = Registry()
    registry.load(version("a", "1"))
    registry.remove("a", "1.0.0")
    assert (registry.ids, registry.default("a"), registry.live("a", "1.0.0")) == ([], None, None)
    assert registry.pinned("a", "1") == version("a", "1")
    registry.load(version("a", "2"))
    assert (registry.ids, registry.default("a")) == (["a"], version("a", "2"))


def test_removed_personalities_are_kept_in_a_bounded_number() -> None:
    registry = Registry()
    for number in range(REMOVED_KEPT + 1):
        registry.load(version(str(number), "1"))
        registry.remove(str(number), "1.0.0")
    assert registry.pinned("0", "1") is None
    assert registry.pinned("1", "1") == version("1", "1")


def test_ids_come_in_order() -> None:
    registry = Registry()
    for personality_id in ("c", "a", "b"):
        registry.load(version(personality_id, "1"))
    assert [registry.after(after) for after in ("", "a", "c")] == [["a", "b", "c"], ["b", "c"], []]
