"""The sources of a prompt: the personality, the history and the tools."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import grpc.aio

from agentshell.mesh import call
from agentshell.mesh.errors import AgentShellError
from agentshell.turn import envelope
from kfm.content.v1.content_pb2 import Message
from kfm.error.v1 import error_pb2
from kfm.memory.v1.memory_service_pb2 import ListMessagesRequest
from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from kfm.personality.v1.personality_service_pb2 import GetRequest, Personality
from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub
from kfm.provider.v1.provider_service_pb2 import ToolDefinition
from kfm.tool.v1.tool_service_pb2 import ListToolsRequest
from kfm.tool.v1.tool_service_pb2_grpc import ToolServiceStub
from kfm.turn.v1.turn_event_pb2 import StepRequest

_KEPT = 256
_PAGE_TOOLS = 1000

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_Digest = tuple[str, str]


class Sources:
    """Fetches them from their services. Caches what a personality's digest determines, which never changes."""

    def __init__(
        self,
        memory: grpc.aio.Channel,
        personality: grpc.aio.Channel,
        tool: grpc.aio.Channel,
        max_history_messages: int,
    ) -> None:
        self._memory = MemoryServiceStub(memory)
        self._personality = PersonalityServiceStub(personality)
        self._tool = ToolServiceStub(tool)
        self._max_history_messages = max_history_messages
        self._personalities: OrderedDict[_Digest, Personality] = OrderedDict()
        self._histories: OrderedDict[tuple[str, str], Sequence[Message]] = OrderedDict()
        self._tools: OrderedDict[tuple[str, str, str], Mapping[str, ToolDefinition]] = OrderedDict()

    async def personality(self, request: StepRequest) -> Personality:
        """Returns the personality that the turn is pinned to."""
        key = (request.personality_id, request.personality_digest)
        if key not in self._personalities:
            found = await self._personality.Get(GetRequest(personality_id=key[0], digest=key[1]))
            _keep(self._personalities, key, found.personality)
        return self._personalities[key]

    async def history(self, request: StepRequest) -> Sequence[Message]:
        """Returns the session's newest messages, oldest first: the same ones for all steps of a turn."""
        if request.header.session_id == envelope.own_session_id(request.turn_id):
            return []
        key = (request.header.tenant_id, request.turn_id)
        if key not in self._histories:
            asked = ListMessagesRequest(session_id=request.header.session_id, page_size=self._max_history_messages)
            _keep(self._histories, key, (await self._memory.ListMessages(asked)).messages)
        return self._histories[key]

    async def tools(self, personality: Personality, names: Sequence[str] = ()) -> list[ToolDefinition]:
        """Returns the named tools, or all available ones of the personality. Makes no call if it has none.

        Raises TOOL_NOT_FOUND if a named tool does not exist.
        """
        if not (names or personality.tools):
            return []
        key = (call.tenant(), personality.personality_id, personality.digest)
        known = self._tools.get(key) or await self._list_tools(*key[1:])
        if known.keys() >= set(personality.tools):  # Otherwise some may be temporarily unavailable.
            _keep(self._tools, key, known)
        for name in names:
            if name not in known:
                raise AgentShellError(
                    error_pb2.ERROR_REASON_TOOL_NOT_FOUND,
                    f"personality {key[1]!r} has no tool {name!r}; it has: {', '.join(sorted(known)) or 'none'}",
                    metadata={"personality_id": key[1], "tool": name},
                )
        return [known[name] for name in names or personality.tools if name in known]

    async def _list_tools(self, personality_id: str, digest: str) -> Mapping[str, ToolDefinition]:
        asked = ListToolsRequest(personality_id=personality_id, personality_digest=digest, page_size=_PAGE_TOOLS)
        page = await self._tool.ListTools(asked)  # A model is offered at most 128.
        return {
            tool.name: ToolDefinition(name=tool.name, description=tool.description, input_schema=tool.input_schema)
            for tool in page.tools
        }


def _keep(kept: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    kept[key] = value
    if len(kept) > _KEPT:
        kept.popitem(last=False)
