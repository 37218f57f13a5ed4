"""What a tool asks of the host: parsed, checked against its pack's manifest and its call's budget, and done."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentshell.tool import egress
from agentshell.tool.egress import Egress, EgressError
from agentshell.tool.grant import Grant
from agentshell.tool.sandbox import frame
from agentshell.tool.sandbox.limits import Budget

_PROGRESS_CHARACTERS: Final = 500
_SHOWN_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Abilities:
    """All that the sandbox of one call lets out. Its answers are for `Worker.call`."""

    grant: Grant
    """If the pack declares no host, there is no `http_get`."""
    budget: Budget
    egress: Egress
    tell: Callable[[str], None]

    async def answer(self, name: str, arguments: str) -> dict[str, Any]:
        """Does what the tool asks.

        Raises TOOL_HOST_CALL_LIMIT, TOOL_EGRESS_LIMIT, HOST_NOT_ALLOWED and TOOL_ABILITY_DENIED, which end the call.
        """
        self.budget.spend_call()
        if name not in self._names:
            fix = "its pack does not declare it in abilities, or it does not exist"
            raise self.grant.denied(f"ask the host for {name[:_SHOWN_CHARACTERS]!r}", "pack", fix)
        match name, _read(arguments):
            case "progress", {"text": str(text)}:
                self.tell(text[:_PROGRESS_CHARACTERS])
                return {"value": "null"}
            case "http_get", {"url": str(url), "headers": {**headers}}:
                return await self._get(url, headers)
            case _:
                return {"error": f"{name} does not take these arguments"}

    @property
    def _names(self) -> Collection[str]:
        return ("progress", "http_get") if self.grant.declared else ("progress",)

    async def _get(self, url: str, headers: Mapping[Any, Any]) -> dict[str, Any]:
        if not all(isinstance(text, str) for pair in headers.items() for text in pair):
            return {"error": "headers must be names and values, both text"}
        try:
            target = egress.parse(url)
            self.grant.check_host(target)
            secrets = self.grant.secrets(target)
            answer = await self.egress.send(self.budget, "GET", target, headers, secrets=secrets)
        except EgressError as error:
            return {"error": str(error)}
        value = json.dumps(egress.page(answer), ensure_ascii=False)
        too_large = len(value.encode()) > frame.MAX_BYTES // 2  # In its frame, escapes at most double it.
        return {"error": "the answer is larger than a tool can receive"} if too_large else {"value": value}


def _read(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return None
