"""The order of semantic versions. Pure."""

from __future__ import annotations

_Identifier = tuple[bool, int, str]


def precedence(version: str) -> tuple[bool, list[int], list[_Identifier], str]:
    """Returns a key that sorts versions from old to new, as https://semver.org does.

    Except that a pre-release comes before every release: it answers only if requested, or if there is nothing else.
    """
    plain, _, _ = version.partition("+")
    release, _, pre_release = plain.partition("-")
    numbers = [int(number) for number in release.split(".")]
    identifiers = [_identifier(text) for text in pre_release.split(".")] if pre_release else []
    return not pre_release, numbers, identifiers, version


def _identifier(text: str) -> _Identifier:
    is_number = text.isdecimal()
    return not is_number, int(text) if is_number else 0, text
