"""The part of a session's history that fits a prompt: the newest turns, whole, and a summary of what came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agentshell import tokens
from agentshell.memory.stores.history import History
from agentshell.memory.summary import Summaries
from kfm.content.v1.content_pb2 import ROLE_TOOL, ROLE_USER, Message
from kfm.memory.v1.memory_service_pb2 import GetWindowRequest, GetWindowResponse

DEFAULT_TURNS = 20
MAX_MESSAGES = 2000

_PAGE_MESSAGES = 200
_MESSAGES_PER_TURN = 4  # About as many as a turn with a tool call has, so that few windows need a second page.


class Limits(NamedTuple):
    """What a window may hold. `tokens` is estimated; 0 means no limit."""

    turns: int
    tokens: int
    bytes: int


class Cut(NamedTuple):
    """Where a window begins among messages, how many tokens it has, and whether older messages may belong to it."""

    begin: int
    tokens: int
    is_open: bool


def cut(messages: Sequence[Message], limits: Limits) -> Cut:
    """Returns where the window begins among `messages`, which are given oldest first.

    A turn begins with a user's message, and is included whole or not at all. Of the newest turn alone, as much of its
    end as fits may be included, without results of tools whose calls do not fit. The newest message always is, however
    large.
    """
    counts: list[int] = []  # Of tokens, newest first.
    newest = len(messages) - 1
    begin = whole = len(messages)
    turns = token_count = size_bytes = 0
    is_open = True
    for index in range(newest, -1, -1):
        counts.append(tokens.estimate_message(messages[index]))
        token_count += counts[-1]
        size_bytes += messages[index].ByteSize()
        if index < newest and (0 < limits.tokens < token_count or limits.bytes < size_bytes):
            is_open = False
            break
        begin = index
        if messages[index].role == ROLE_USER:
            whole, turns = index, turns + 1
            if turns == limits.turns:
                is_open = False
                break
    if turns and not is_open:
        begin = whole
    elif not is_open:
        while begin < newest and messages[begin].role == ROLE_TOOL:
            begin += 1
    return Cut(begin, sum(counts[: len(messages) - begin]), is_open)


class Windows:
    """Windows of sessions' histories."""

    def __init__(self, history: History, summaries: Summaries) -> None:
        self._history = history
        self._summaries = summaries

    async def get(self, tenant_id: str, request: GetWindowRequest, limit_bytes: int) -> GetWindowResponse:
        """Returns the window that the request asks for.

        If the Provider fails, the summary is the last one made; `summarized_position` says how far it goes.
        """
        session_id = request.session_id
        limits = Limits(request.max_turns or DEFAULT_TURNS, request.max_tokens, limit_bytes)
        response = await self._newest(tenant_id, session_id, limits)
        first_position = response.first_position
        if first_position > 1:
            summary = await self._summaries.last(tenant_id, session_id)
            if request.summarize:
                # Further than it must be, so that not every new turn needs another one.
                until = first_position - 1 + len(response.messages) // 2
                summary = await self._summaries.roll(tenant_id, session_id, summary, first_position - 1, until)
            if summary is not None and summary.position:
                response.summary.CopyFrom(summary.record)
                response.summarized_position = summary.position
        return response

    async def _newest(self, tenant_id: str, session_id: str, limits: Limits) -> GetWindowResponse:
        messages: list[Message] = []
        before: int | None = None
        page_size = min(_PAGE_MESSAGES, _MESSAGES_PER_TURN * limits.turns)
        while True:
            page = await self._history.list(tenant_id, session_id, before, page_size, limits.bytes)
            messages[:0] = page.messages
            begin, count, is_open = cut(messages, limits)
            if not (is_open and page.has_more and len(messages) < MAX_MESSAGES):
                first_position = page.first_position + begin
                return GetWindowResponse(messages=messages[begin:], message_tokens=count, first_position=first_position)
            before = page.first_position
