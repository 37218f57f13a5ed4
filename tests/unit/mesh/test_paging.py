"""Page tokens are bound to their tenant and query."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from agentshell.mesh import call, paging
from agentshell.mesh.call import Principal
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import ListMessagesRequest
from kfm.turn.v1.turn_service_pb2 import ListTurnsRequest

QUERY = ListTurnsRequest(session_id="s", page_size=2)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


@pytest.fixture(autouse=True, scope="module")
def acme() -> Generator[None]:
    with call.scope(Principal("acme", "ann"), None):
        yield


def refused(request: Message, token: str) -> bool:
    with pytest.raises(AgentShellError) as raised:
        paging.decode(request, token, int, str)
    assert [field for field, _ in raised.value.violations] == ["page_token"]
    return raised.value.reason == error_pb2.ERROR_REASON_PAGE_TOKEN_INVALID


@given(st.integers(-(2**63), 2**63 - 1), TEXTS, TEXTS)
def test_a_token_gets_its_position_back(number: int, text: str, session_id: str) -> None:
    request = ListTurnsRequest(session_id=session_id, page_size=2)
    token = paging.encode(request, number, text)
    following = ListTurnsRequest(session_id=session_id, page_size=7, page_token=token)
    assert paging.decode(following, token, int, str) == [number, text]


def test_no_token_is_no_position() -> None:
    assert paging.decode(QUERY, "", int, str) is None


@pytest.mark.parametrize(
    "other", [ListTurnsRequest(), ListTurnsRequest(session_id="t"), ListMessagesRequest(session_id="s")]
)
def test_a_token_of_another_query_is_refused(other: Message) -> None:
    assert refused(QUERY, paging.encode(other, 7, "t1"))


@pytest.mark.parametrize("invented", [2**63, -(2**63) - 1, 10**40, "x"])
def test_a_position_that_no_service_has_is_refused_however_it_is_sealed(invented: int | str) -> None:
    assert refused(QUERY, paging.encode(QUERY, invented, "t1"))


def test_a_token_of_another_tenant_is_refused() -> None:
    with call.scope(Principal("globex", "ann"), None):
        token = paging.encode(QUERY, 7, "t1")
    assert refused(QUERY, token)


@pytest.mark.parametrize("position", [(), (7,), ("t1", 7), (7, "t1", 7)])
def test_a_token_whose_position_has_another_shape_is_refused(position: tuple[int | str, ...]) -> None:
    assert refused(QUERY, paging.encode(QUERY, *position))


@given(st.one_of(st.text(min_size=1), st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True)))
def test_any_other_text_is_refused(text: str) -> None:
    assert refused(QUERY, text)


@given(st.data())
def test_an_altered_token_is_refused(data: st.DataObject) -> None:
    token = paging.encode(QUERY, 7, "t1")
    at = data.draw(st.integers(0, len(token) - 2))  # Some bits of the last character are unused.
    character = data.draw(st.characters(codec="ascii").filter(lambda other: other != token[at]))
    assert refused(QUERY, token[:at] + character + token[at + 1 :])


@pytest.mark.parametrize(("asked", "size"), [(0, 50), (1, 1), (500, 500), (501, 500)])
def test_a_page_has_the_size_asked_for_within_bounds(asked: int, size: int) -> None:
    assert paging.page_size(asked, default=50, most=500) == size
