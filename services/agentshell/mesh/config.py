"""The configuration: defaults, then a TOML file, then `AGENTSHELL_*` variables. Each concern has its own class.

A variable names its key with `__` between the levels: `AGENTSHELL_RUNTIME__MAX_STEPS=10`. What is unknown or malformed
stops the start, with the key, the value and the fix.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

PREFIX = "AGENTSHELL_"
# Not configuration: where that is, a client's credential, and what only tests read.
_RESERVED = ("AGENTSHELL_CONFIG", "AGENTSHELL_API_KEY", "AGENTSHELL_TEST_")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServerConfig(_Section):
    """Where this process listens and how it stops."""

    address: str = "127.0.0.1:7700"
    """Host:port for clients; port 0 takes a free one."""
    mesh_address: str = ""
    """Unix:PATH or host:port for the mesh; empty: in the data directory."""
    http_address: str = "127.0.0.1:7701"
    """Host:port of /metrics and /health; port 0: a free one."""
    drain_seconds: PositiveFloat = 10.0
    """How long calls in flight may take to end at a stop."""
    max_message_bytes: PositiveInt = 4 * 1024 * 1024
    """The largest message taken."""


class AuthConfig(_Section):
    """Who may call."""

    keys_file: Path | None = None
    """API keys; empty: api-keys.json in the data directory."""
    mesh_key_file: Path | None = None
    """The mesh's own secret; empty: mesh.key in the data directory."""


class DatabaseConfig(_Section):
    """Postgres."""

    url: str = ""
    """Postgresql://...; empty: the bundled server in the data directory."""
    max_connections: PositiveInt = 16
    """Connections of one process."""


class LogConfig(_Section):
    """The durable log."""

    driver: Literal["postgres", "iggy"] = "postgres"
    """Where the log is kept."""
    url: str = ""
    """iggy://USER:PASSWORD@HOST:PORT or iggy://TOKEN@HOST:PORT, for the driver iggy."""
    partitions: PositiveInt = 8
    """Partitions of each topic; fixed when the topic is made."""
    retention_days: PositiveInt = 30
    """How long records are kept."""
    lease_seconds: PositiveFloat = 5.0
    """How long a silent member of a group keeps its partitions."""


class RuntimeConfig(_Section):
    """Turns. These are defaults and, at the same time, the most that a request may ask for."""

    max_turn_seconds: PositiveFloat = 120.0
    """From a turn's acknowledgement to its end."""
    max_steps: PositiveInt = 25
    """Steps of a turn."""
    max_attempts: PositiveInt = 3
    """Attempts at a step that fails for a passing reason."""
    step_seconds: PositiveFloat = 60.0
    """One attempt at a step that says nothing of its own."""
    max_history_messages: PositiveInt = 40
    """Messages of the session that a model is shown."""
    max_passages: PositiveInt = 6
    """Passages that a memory step finds."""
    max_active_turns: PositiveInt = 1000
    """Turns under way in a manager; the others wait in the log."""
    max_active_steps: PositiveInt = 64
    """Steps under way in a worker; the others wait in the log."""
    max_context_tokens: PositiveInt = 100_000
    """Tokens that a model is shown, by estimate."""
    max_turn_tokens: PositiveInt | None = None
    """Tokens read and written by the models of a turn; absent: no limit."""
    max_turn_cost_usd: PositiveFloat | None = None
    """What a turn may cost; absent: no limit."""
    approval_wait_seconds: PositiveFloat = 7 * 24 * 3600.0
    """How long a turn waits for somebody's answer."""
    max_open_turns: PositiveInt = 10_000
    """Turns that are not over and do not wait for somebody; more are refused."""
    max_open_turns_per_tenant: PositiveInt = 1_000
    """The same, of one tenant."""
    max_depth: int = Field(default=4, ge=1, le=16)
    """Turns below a turn that agent steps ask for."""
    http_hosts: tuple[Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:[0-9]+)?$")], ...] = ()
    """Hosts that HTTP steps may call: `host`, or `host:port`."""
    max_http_bytes: PositiveInt = 256 * 1024
    """The largest answer that an HTTP step takes."""


class VendorConfig(_Section):
    """A model vendor."""

    model: str = ""
    """The default model; empty: the adapter's."""
    base_url: str = ""
    """Where the vendor's API is; empty: the SDK's default."""
    api_key_env: str = ""
    """The variable that holds the key; empty: the vendor's usual one."""


class ProviderConfig(_Section):
    """Models."""

    default: str = "local"
    """The provider where nobody names one."""
    openai: VendorConfig = VendorConfig()
    anthropic: VendorConfig = VendorConfig()


class MemoryConfig(_Section):
    """Memory."""

    chunk_characters: int = Field(default=1200, ge=100, le=16_384)
    """The most characters of a chunk."""
    chunk_overlap_characters: int = Field(default=150, ge=0)
    """What a chunk repeats of the one before."""


class PersonalityConfig(_Section):
    """Personality packs."""

    directories: tuple[Path, ...] = ()
    """Where packs are; empty: those that ship with it."""
    default: str = "guide"
    """The personality where nobody names one."""


class TelemetryConfig(_Section):
    """Logs, metrics and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_endpoint: str = ""
    """Host:port of an OTLP collector; empty: spans are not recorded."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """The share of traces recorded."""


class Config(_Section):
    """All of it."""

    data_dir: Path = Field(default_factory=lambda: _default_data_dir())
    """Everything that must survive."""
    peers: dict[str, str] = Field(default_factory=dict[str, str])
    """Service -> address; missing: here."""
    server: ServerConfig = ServerConfig()
    auth: AuthConfig = AuthConfig()
    database: DatabaseConfig = DatabaseConfig()
    log: LogConfig = LogConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    provider: ProviderConfig = ProviderConfig()
    memory: MemoryConfig = MemoryConfig()
    personality: PersonalityConfig = PersonalityConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


def load(path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Config:
    """Returns the configuration from a TOML file (None: `AGENTSHELL_CONFIG`, or no file), variables and overrides.

    Overrides, from the command line, come last and are nested like the file. Raises CONFIG_INVALID.
    """
    if path is None and environment.get("AGENTSHELL_CONFIG"):
        path = Path(environment["AGENTSHELL_CONFIG"])
    values: dict[str, Any] = _read(path) if path else {}
    origin = str(path) if path else "the configuration"
    for name, value in environment.items():
        if name.startswith(PREFIX) and not name.startswith(_RESERVED):
            _set(values, name.removeprefix(PREFIX).lower().split("__"), value, name)
    _merge(values, overrides or {})
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error, origin) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise _invalid(str(path), "", "no such file", "name an existing TOML file, or none") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(str(path), "", f"not TOML: {error}", "mend the line it names") from None


def _set(values: dict[str, Any], keys: list[str], value: str, name: str) -> None:
    for key in keys[:-1]:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            raise _invalid(name, value, f"{key} is not a section", "remove the variable")
        values = child  # pyright: ignore[reportUnknownVariableType] - TOML's own shape
    try:  # Lists and tables come from the environment as TOML; anything else as its text.
        values[keys[-1]] = tomllib.loads(f"v = {value}")["v"] if value.startswith(("[", "{")) else value
    except tomllib.TOMLDecodeError as error:
        raise _invalid(name, value, f"not TOML: {error}", "write a list as ['a', 'b'], a table as {a = 'b'}") from None


def _merge(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            _merge(values.setdefault(key, {}), value)  # pyright: ignore[reportUnknownArgumentType] - nested like TOML
        else:
            values[key] = value


def _explain(error: ValidationError, origin: str) -> AgentShellError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    fix = (
        "see `agentshell config` for the keys there are"
        if first["type"] == "extra_forbidden"
        else "set it so, or remove it"
    )
    problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
    return _invalid(
        key, str(first["input"]), f"{problem} (in {origin} or {PREFIX}{key.upper().replace('.', '__')})", fix
    )


def _invalid(key: str, value: str, problem: str, fix: str) -> AgentShellError:
    return AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"configuration key {key!r} = {value!r}: {problem}; {fix}",
        metadata={"key": key, "value": value, "fix": fix},
    )


def _default_data_dir() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "agentshell"
