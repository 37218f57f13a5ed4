"""A window has the newest whole turns that fit."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell import tokens
from agentshell.memory.window import Cut, Limits, cut
from kfm.content.v1.content_pb2 import ROLE_ASSISTANT, ROLE_TOOL, ROLE_USER, Message, Part, Role, Text

ROLES = {"u": ROLE_USER, "a": ROLE_ASSISTANT, "t": ROLE_TOOL}
LARGE = 10**9


def conversation(roles: str, words: int = 1) -> list[Message]:
    return [_message(ROLES[role], words) for role in roles]


def _message(role: Role.ValueType, words: int) -> Message:
    return Message(role=role, parts=[Part(text=Text(text="word " * words))])


def test_turns_are_whole_and_of_the_newest_alone_as_much_of_its_end_as_fits() -> None:
    each = tokens.estimate_message(conversation("u")[0])
    table: Sequence[tuple[str, int, int, tuple[int, bool]]] = [
        ("", 3, 0, (0, True)),
        ("ua", 3, 0, (0, True)),  # Older messages may belong to it.
        ("aua", 1, 0, (1, False)),
        ("uauaua", 2, 0, (2, False)),
        ("uatatauaua", 3, 0, (0, False)),
        ("uauau", 9, each * 3, (2, False)),
        ("uauaua", 9, each * 3, (4, False)),  # No half turns.
        ("uaaa", 9, each * 2, (2, False)),  # Only the newest turn, which does not fit.
        ("uatta", 9, each * 3, (4, False)),  # A tool result without its call is useless.
        ("uatt", 9, each, (3, False)),  # The newest message always comes.
        ("ua", 9, 1, (1, False)),
    ]
    for roles, turns, most, (begin, is_open) in table:
        expected = Cut(begin, each * (len(roles) - begin), is_open)
        assert cut(conversation(roles), Limits(turns, most, LARGE)) == expected, roles
    large = conversation("uaua", 1000)
    assert cut(large, Limits(9, 0, 2 * large[0].ByteSize())).begin == 2


@settings(max_examples=200)
@given(
    roles=st.text("uat", max_size=30),
    words=st.integers(1, 20),
    turns=st.integers(1, 8),
    most=st.integers(0, 300),
)
def test_a_window_never_exceeds_its_limits_and_leaves_no_turn_out_that_fits(
    roles: str, words: int, turns: int, most: int
) -> None:
    messages = conversation(roles, words)
    begin, count, is_open = cut(messages, Limits(turns, most, LARGE))
    window = messages[begin:]
    assert count == sum(map(tokens.estimate_message, window))
    assert len(window) <= 1 or not most or count <= most
    assert roles[begin:].count("u") <= turns
    assert not messages or window
    if is_open:
        assert begin == 0
    elif "u" in roles[begin:]:
        assert roles[begin] == "u"
        older = roles.rfind("u", 0, begin)  # The turn before it, if any.
        if older >= 0 and roles[begin:].count("u") < turns:
            assert sum(map(tokens.estimate_message, messages[older:])) > most > 0
