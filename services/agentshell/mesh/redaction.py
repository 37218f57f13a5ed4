"""Removes secrets and personal data, by their form and in linear time, from text bound for logs and traces. Pure.

A second line of defence: what a user, a model or a tool says is not logged in the first place, but errors may quote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

_LONGEST_CHARACTERS: Final = 16_384
_DEEPEST: Final = 8

# Each match starts where nothing of its kind comes before, and never backtracks: hostile text is read once.
_SECRETS: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]*+(?:-----END [A-Z ]{0,20}PRIVATE KEY-----)?"
    r"|\beyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+)?"  # A JSON Web Token.
    r"|\b(?:sk|pk|rk|ask|hf|npm|glpat|pypi|github_pat|gh[pousr]|xox[abeprs])[-_][\w-]{16,}+"
    r"|\b(?:AKIA|ASIA|AIza)[\w-]{12,}+"
    r"|(?i:\b(?:bearer|basic)\s{1,4}(?=[a-z_.~+/=-]*+\d)[\w.~+/=-]{8,}+)"
    r"|(?i:(?<=[?&])(?:access_token|token|key|api_?key|password|secret|sig|signature)=[^&\s\"']++)"
    r"|(?i:\b(?:api[-_]?key|password|passwd|secret|access[-_]token)[\"']?+\s{0,4}[:=]\s{0,4}[\"']?+[^\s\"',;]{6,}+)"
    r"|(?<=://)[^\s/:@]{1,128}:[^\s/@]{1,256}@"
)
_EMAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}+@[\w-]{1,63}+(?:\.[\w-]{1,63}+)+")
_PHONE: Final = re.compile(r"(?<![\w+])\+[1-9]\d{0,3}(?:[ ()./-]{0,2}\d){6,12}(?!\w)")
_CARD: Final = re.compile(r"(?<![\w-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{5})(?![\w-])")
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{1,4}){3,8}\b")


def redact(text: str) -> str:
    """Returns a text with each finding replaced by its kind, such as `[secret]`; cut if it is very long."""
    if len(text) > _LONGEST_CHARACTERS:
        text = f"{text[:_LONGEST_CHARACTERS]}[cut]"
    text = _SECRETS.sub("[secret]", text)
    text = _EMAIL.sub("[email]", text)
    text = _IBAN.sub(_unless(_is_iban, "[iban]"), text)
    text = _CARD.sub(_unless(_is_card, "[card]"), text)
    return _PHONE.sub("[phone]", text)


def redact_all(value: Any, depth: int = 0) -> Any:
    """Returns a value with every text in it redacted, except keys."""
    if depth > _DEEPEST:
        return "[deep]"
    match value:
        case str():
            return redact(value)
        case Mapping():
            return {key: redact_all(each, depth + 1) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType] - of any
        case list() | tuple():
            return [redact_all(each, depth + 1) for each in value]  # pyright: ignore[reportUnknownVariableType] - of any
        case _:
            return value


def _unless(holds: Callable[[str], bool], kind: str) -> Callable[[re.Match[str]], str]:
    return lambda match: kind if holds(match[0]) else match[0]


def _is_card(text: str) -> bool:
    """Returns whether the check digit is right (Luhn)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [2 * digit - 9 if digit > 4 else 2 * digit for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """Returns whether the check digits are right (ISO 13616)."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1
