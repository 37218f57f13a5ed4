"""What a tool call may reach outside: what its pack declares, the operator allows and its tenant's policy permits.

Each of the three can refuse, and the error says which did.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from agentshell.mesh import web
from agentshell.mesh.config import McpServerConfig, TenantPolicyConfig, ToolConfig, ToolSecretConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

if TYPE_CHECKING:
    import httpx2

_SHOWN_CHARACTERS: Final = 64
_EVERYTHING: Final = TenantPolicyConfig()

By = Literal["pack", "operator", "tenant"]


@dataclass(frozen=True, slots=True)
class Grant:
    """The grant of one call."""

    config: ToolConfig
    tenant_id: str
    personality_id: str
    tool: str
    declared: Collection[str]
    """The hosts that the pack declares."""

    @property
    def has_tool(self) -> bool:
        """Whether the tenant's policy permits the tool."""
        return _leaves(self._policy.tools, self.tool)

    def check_tool(self) -> None:
        """Raises TOOL_ABILITY_DENIED unless the tenant's policy permits the tool."""
        if not self.has_tool:
            raise self.denied("be called", "tenant", f"add it to {self._policy_key('tools')}")

    def check_outside(self) -> None:
        """Raises TOOL_ABILITY_DENIED unless the tenant's policy permits the personality to reach anything outside."""
        if not _leaves(self._policy.personalities, self.personality_id):
            fix = f"add personality {self.personality_id!r} to {self._policy_key('personalities')}"
            raise self.denied("reach anything outside", "tenant", fix)

    def check_host(self, url: httpx2.URL, *, is_operators: bool = False) -> None:
        """Checks a host that the tool or its pack asks for, or (`is_operators`) one from the operator's configuration.

        Raises TOOL_ABILITY_DENIED, as `check_outside` does, and HOST_NOT_ALLOWED.
        """
        self.check_outside()
        allowed: Sequence[tuple[By, Collection[str] | None, str]] = (
            (
                "pack",
                None if is_operators else self.declared,
                "its pack's manifest must name it in abilities.http_hosts",
            ),
            ("operator", self.config.http_hosts, "an operator must add it to configuration key 'tool.http_hosts'"),
            ("tenant", self._policy.http_hosts, f"an operator must add it to {self._policy_key('http_hosts')}"),
        )
        for by, hosts, fix in allowed:
            if hosts is not None and {host.lower() for host in hosts}.isdisjoint(web.spellings(url)):
                host = web.host_of(url)
                raise AgentShellError(
                    error_pb2.ERROR_REASON_HOST_NOT_ALLOWED,
                    f"tool {self.tool!r} may not go to {host!r}: {fix}",
                    metadata={"tool": self.tool, "host": host, "refused_by": by},
                )

    def secrets(self, url: httpx2.URL) -> list[ToolSecretConfig]:
        """Returns the secrets that go with what the pack's own tools send to a host, as far as the policy permits."""
        return [
            secret
            for secret in self.config.secrets
            if secret.host.lower() in web.spellings(url)
            and self.personality_id in secret.personalities
            and _leaves(self._policy.secrets, secret.called)
        ]

    def secret(self, name: str, url: httpx2.URL) -> ToolSecretConfig:
        """Returns a secret by name, if it goes with requests to this host. Raises TOOL_ABILITY_DENIED."""
        if not _leaves(self._policy.secrets, name):
            raise self.denied(f"send secret {name!r}", "tenant", f"add it to {self._policy_key('secrets')}")
        for secret in self.secrets(url):
            if secret.called == name:
                return secret
        fix = f"configuration key 'tool.secrets' must allow it for {web.host_of(url)} and {self.personality_id!r}"
        raise self.denied(f"send secret {name!r}", "operator", fix)

    def server(self, name: str) -> McpServerConfig:
        """Returns the configuration of a Model Context Protocol server. Raises TOOL_ABILITY_DENIED."""
        self.check_outside()
        found = self.config.mcp_servers.get(name)
        if found is None or self.personality_id not in found.personalities:
            fix = f"configuration key 'tool.mcp_servers' must allow it for personality {self.personality_id!r}"
            raise self.denied(f"use server {name[:_SHOWN_CHARACTERS]!r}", "operator", fix)
        return found

    def denied(self, what: str, by: By, fix: str) -> AgentShellError:
        """The error for something that the tool may not do."""
        return AgentShellError(
            error_pb2.ERROR_REASON_TOOL_ABILITY_DENIED,
            f"tool {self.tool!r} may not {what}: {fix}",
            metadata={"tool": self.tool, "refused_by": by},
        )

    @property
    def _policy(self) -> TenantPolicyConfig:
        return self.config.tenant_policies.get(self.tenant_id, _EVERYTHING)

    def _policy_key(self, field: str) -> str:
        return f"configuration key 'tool.tenant_policies.{self.tenant_id}.{field}'"


def _leaves(names: Collection[str] | None, name: str) -> bool:
    return names is None or name in names
