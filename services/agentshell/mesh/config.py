"""The configuration: defaults, then a TOML file, then `AGENTSHELL_*` variables. Each concern has its own class.

A variable names its key with `__` between the levels: `AGENTSHELL_RUNTIME__MAX_STEPS=10`. What is unknown or malformed
stops the start, with the key, the value and the fix.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

PREFIX = "AGENTSHELL_"
# What `log.topics` may name. The outputs of a turn are looked for where its events are: both have the same partitions.
TOPICS = ("agent.turns", "agent.outputs", "agent.steps", "agent.turns.dlq", "agent.steps.dlq")
_OUTPUTS, _TURNS = "agent.outputs", "agent.turns"
_MAX_PORT = 65_535
_MAX_TTL_SECONDS = 100 * 366 * 24 * 3600
# Not configuration: where that is, a client's credential, and what only tests read.
_RESERVED = ("AGENTSHELL_CONFIG", "AGENTSHELL_API_KEY", "AGENTSHELL_TEST_")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _check_host_port(address: str) -> str:
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > _MAX_PORT:
        raise ValueError(f"not HOST:PORT, with a port of at most {_MAX_PORT}")
    return address


HostPort = Annotated[str, AfterValidator(_check_host_port)]
Host = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:[0-9]+)?$")]
"""A name or an address, and a port where only that one is meant."""


class ServerConfig(_Section):
    """Where this process listens and how it stops."""

    address: HostPort = "127.0.0.1:7700"
    """Host:port for clients; port 0 takes a free one."""
    mesh_address: str = ""
    """`unix:PATH` or host:port for the mesh; empty: a socket in the data directory."""
    http_address: HostPort = "127.0.0.1:7701"
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


class TlsConfig(_Section):
    """TLS at host:port, for clients and for the mesh; sockets are plain. Files are PEM."""

    certificate_file: Path | None = None
    """The certificate of this process, with those between it and its authority; absent: it serves plainly."""
    key_file: Path | None = None
    """Its private key, without a password."""
    client_ca_file: Path | None = None
    """The authorities of clients' certificates: who shows none is refused, whatever its key; absent: none is needed."""
    ca_file: Path | None = None
    """The authorities of those whom this process calls: its mesh, or the rest of it; absent: the well-known ones."""

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            given, missing = ("key_file", "certificate_file") if self.key_file else ("certificate_file", "key_file")
            raise ValueError(f"{given} goes with {missing}, which is not set")
        if self.client_ca_file is not None and self.certificate_file is None:
            raise ValueError("client_ca_file goes with certificate_file and key_file, which are not set")
        return self


class DatabaseConfig(_Section):
    """Postgres."""

    url: str = ""
    """`postgresql://...`; empty: the bundled server in the data directory."""
    max_connections: PositiveInt = 16
    """Connections of one process."""


class TopicConfig(_Section):
    """A topic of the log, as far as it is other than the rest."""

    partitions: PositiveInt | None = None
    """Absent: log.partitions."""
    retention_days: PositiveInt | None = None
    """Absent: log.retention_days, and for dead letters: for ever."""


class LogConfig(_Section):
    """The durable log."""

    driver: Literal["postgres", "iggy"] = "postgres"
    """Where the log is kept."""
    url: str = ""
    """`iggy://USER:PASSWORD@HOST:PORT/STREAM` or `iggy://TOKEN@HOST:PORT/STREAM`, for the driver `iggy`."""
    partitions: PositiveInt = 8
    """Partitions of each topic; fixed when the topic is made."""
    retention_days: PositiveInt = 30
    """How long records are kept."""
    topics: dict[str, TopicConfig] = Field(default_factory=dict[str, TopicConfig])
    """Topic -> its own partitions and retention_days."""
    lease_seconds: PositiveFloat = 5.0
    """How long a silent member of a group keeps its partitions."""

    @field_validator("topics")
    @classmethod
    def _check_topics(cls, topics: dict[str, TopicConfig], info: ValidationInfo) -> dict[str, TopicConfig]:
        if unknown := sorted(topics.keys() - set(TOPICS)):
            raise ValueError(f"there is no topic {unknown[0]!r}, only {', '.join(TOPICS)}")
        turns = topics.get(_TURNS, TopicConfig()).partitions or info.data.get("partitions")
        if topics.get(_OUTPUTS, TopicConfig()).partitions not in (None, turns):
            raise ValueError(f"{_OUTPUTS!r} has the partitions of {_TURNS!r}, {turns}: leave out its own")
        return topics

    def partitions_of(self, topic: str) -> int:
        """Returns how many partitions a topic has."""
        own = self.topics.get(_TURNS if topic == _OUTPUTS else topic, TopicConfig())
        return own.partitions or self.partitions

    def retention_days_of(self, topic: str) -> int | None:
        """Returns how long a topic keeps its records, where it says so itself."""
        return self.topics.get(topic, TopicConfig()).retention_days


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
    max_active_turns: PositiveInt = 2000
    """Turns under way in a manager; the others wait in the log. More than a tenant's: none takes all the room."""
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
    http_hosts: tuple[Host, ...] = ()
    """Hosts that HTTP steps may call: `host`, or `host:port`."""
    max_http_bytes: PositiveInt = 256 * 1024
    """The largest answer that an HTTP step takes."""


class EndpointConfig(_Section):
    """One of several ways to a vendor. What is empty is the vendor's."""

    base_url: str = ""
    """Where the vendor's API is."""
    api_key_env: str = ""
    """The variable that holds the key."""
    api_key_file: Path | None = None
    """The file that holds the key."""
    weight: PositiveInt = 1
    """Its share of the calls, beside the others' weights."""


class VendorConfig(_Section):
    """A model vendor. Its name is what requests call `provider`."""

    adapter: str = ""
    """What it speaks: local, openai, openai_chat, openai_compatible, anthropic, gemini; empty: as it is named."""
    model: str = ""
    """The default model; empty: the adapter's."""
    base_url: str = ""
    """Where the vendor's API is; empty: the SDK's default."""
    api_key_env: str = ""
    """The variable that holds the key; empty: the vendor's usual one."""
    api_key_file: Path | None = None
    """The file that holds the key, instead of a variable."""
    endpoints: tuple[EndpointConfig, ...] = ()
    """Several keys or base URLs that share the calls; empty: the one above."""
    silence_seconds: PositiveFloat = 120.0
    """How long the vendor may say nothing within a call; then the call has failed, and is made elsewhere."""
    max_concurrent_calls: PositiveInt = 64
    """Calls under way at one endpoint."""
    max_waiting_calls: int = Field(default=256, ge=0)
    """Calls that wait at one endpoint; more are refused."""


class BudgetConfig(_Section):
    """What may be spent in a period. Refused with BUDGET_EXHAUSTED is the call that may not fit."""

    per: Literal["tenant", "principal", "session"] = "tenant"
    """Whose budget it is: each of these has its own."""
    period: Literal["day", "month"] = "day"
    """How long it lasts, in UTC."""
    tenant: str = ""
    """Only of this tenant; empty: of each."""
    cost_usd: PositiveFloat | None = None
    """The most that calls may cost."""
    tokens: PositiveInt | None = None
    """The most tokens that calls may read and write."""


class BreakerConfig(_Section):
    """When an endpoint is left alone for a while."""

    failures: PositiveInt = 5
    """Failures one after the other that open it."""
    open_seconds: PositiveFloat = 10.0
    """How long it stays open before one call may try."""


_Routes = dict[str, tuple[Annotated[str, Field(pattern=r"^[^/]+/.+$")], ...]]


class ProviderConfig(_Section):
    """Models."""

    default: str = "local"
    """The provider where nobody names one."""
    vendors: dict[str, VendorConfig] = Field(default_factory=dict[str, VendorConfig])
    """Vendor -> how it is called. There are local, openai, openai_chat, anthropic and gemini without it."""
    aliases: _Routes = Field(default_factory=_Routes)
    """Alias -> models as `provider/model`, asked in order until one answers."""
    tenant_aliases: dict[str, _Routes] = Field(default_factory=dict[str, _Routes])
    """Tenant -> aliases of its own, which come before the others."""
    personality_aliases: dict[str, _Routes] = Field(default_factory=dict[str, _Routes])
    """Personality -> aliases of its own, which come before the tenant's."""
    max_attempts: PositiveInt = 3
    """Calls to one model of an alias that fail for a passing reason."""
    default_max_output_tokens: PositiveInt = 16_384
    """Tokens that a model may write where a budget applies and the request has no limit of its own."""
    prices_file: Path | None = None
    """Prices in the form of the table that ships, and before it."""
    budgets: tuple[BudgetConfig, ...] = ()
    """What may be spent."""
    breaker: BreakerConfig = BreakerConfig()


class NamespaceConfig(_Section):
    """A rule for namespaces."""

    namespace: str = Field(pattern=r"^(user|session|personality|knowledge)/[A-Za-z0-9_.:-]{0,128}$")
    """The name of one, or the beginning of names up to the slash, such as `session/`."""
    ttl_seconds: float | None = Field(default=None, gt=0, le=_MAX_TTL_SECONDS)
    """How long a record lives after it was written, where it names no end itself; absent: for ever."""
    embedder: str = Field(default="lexical", pattern=r"^(lexical|local/.+|[^/]+/.+)$")
    """What makes its vectors: `lexical`, `local/<name>` of memory.local_models, or a provider's `provider/model`."""
    dimension: int = Field(default=0, ge=0, le=16_000)
    """How many numbers a vector of a provider's model has. A new embedder makes all vectors anew, in the background."""

    @model_validator(mode="after")
    def _check_dimension(self) -> Self:
        if (self.embedder == "lexical" or self.embedder.startswith("local/")) == bool(self.dimension):
            raise ValueError("`dimension` goes with a provider's model, and with nothing else")
        return self


class MemoryConfig(_Section):
    """Memory."""

    namespaces: tuple[NamespaceConfig, ...] = ()
    """Rules for namespaces; the first that fits one counts."""
    local_models: dict[str, Path] = Field(default_factory=dict[str, Path])
    """Name -> directory of a model of the BERT family (model.safetensors, tokenizer.json, config.json), for the
    embedder `local/<name>`. Give other weights another name."""
    sweep_seconds: PositiveFloat = 60.0
    """How often records that have ended, and are read no more, are taken away."""
    chunk_characters: int = Field(default=1200, ge=100, le=16_384)
    """The most characters of a chunk."""
    chunk_overlap_characters: int = Field(default=150, ge=0)
    """What a chunk repeats of the one before."""
    summary_model: str = ""
    """Who summarises what no longer fits a session's window: `provider/model` or an alias; empty: the default."""
    summary_tokens: int = Field(default=500, ge=50, le=4000)
    """The most tokens of a summary."""
    cache: Literal["process", "redis", "off"] = "process"
    """Where answers to searches and windows are kept, to be given again as long as nothing has changed."""
    cache_seconds: PositiveFloat = Field(default=60.0, le=3600)
    """For how long at the most."""
    cache_mib: PositiveInt = 64
    """How much, in a process."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where Redis is."""
    store: Literal["pgvector", "qdrant", "weaviate"] = "pgvector"
    """What looks through vectors: Postgres, which keeps them all anyway, or an index beside it."""
    qdrant_url: str = "http://127.0.0.1:6333"
    """Where Qdrant is."""
    weaviate_url: str = "http://127.0.0.1:8080"
    """Where Weaviate is."""
    weaviate_grpc_port: PositiveInt = 50051
    """Its port of gRPC."""
    index_key_env: str = ""
    """The variable that holds the index' API key; empty: it needs none."""

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        for rule in self.namespaces:
            kind, _, name = rule.embedder.partition("/")
            if kind == "local" and name not in self.local_models:
                raise ValueError(f"namespaces: {rule.embedder!r} is no model of local_models")
        return self


class PersonalityConfig(_Section):
    """Personality packs."""

    directories: tuple[Path, ...] = ()
    """Where packs are; empty: those that ship with it."""
    archives: tuple[str, ...] = ()
    """Packs as .tar.gz: files, or https://..., each with its signature beside it in a file with `.sig` at its end."""
    trusted_keys: tuple[str, ...] = ()
    """Ed25519 public keys whose signatures count, as base64."""
    allow_unsigned: Literal["none", "directories", "all"] = "directories"
    """Which packs are loaded without a signature: no packs, those in directories, or archives, too."""
    default: str = "guide"
    """The personality where nobody names one: an id, or id@version."""
    tenant_defaults: dict[str, str] = Field(default_factory=dict[str, str])
    """Tenant -> its own default."""
    versions: dict[str, str] = Field(default_factory=dict[str, str])
    """Personality -> the version that answers where none is asked for; missing: the newest."""


class ToolSecretConfig(_Section):
    """A header that the host adds to what some packs' tools send to one host: it never enters their sandbox."""

    name: str = ""
    """What manifests and policies call it; empty: as `value_env`."""
    host: str
    """As in tool.http_hosts."""
    personalities: tuple[str, ...]
    """Whose tools send it."""
    header: str = "authorization"
    """Its name."""
    value_env: str
    """The variable that holds its value, such as `Bearer ...`."""

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or self.value_env


class McpServerConfig(_Section):
    """A Model Context Protocol server: a program of the operator's, which no sandbox holds, or an address."""

    personalities: tuple[str, ...]
    """Whose packs may expose its tools."""
    command: str = ""
    """The program, which speaks on its standard streams: one runs for each tenant that calls it."""
    args: tuple[str, ...] = ()
    """Its arguments."""
    env: dict[str, str] = Field(default_factory=dict[str, str])
    """Its environment, and nothing else. Secrets belong into variables of this process."""
    pass_env: tuple[str, ...] = ()
    """Variables of this process that it gets, too."""
    url: str = ""
    """Where it is, instead of a program; its host must be in tool.http_hosts."""
    secret: str = ""
    """The secret, of tool.secrets, that goes with requests to `url`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("give it a command or a url, and not both")
        return self


class TenantPolicyConfig(_Section):
    """What a tenant's tools may do, of what packs declare and the operator allows. What is absent is not narrowed."""

    tools: tuple[str, ...] | None = None
    """Tools that there are for it."""
    http_hosts: tuple[str, ...] | None = None
    """Hosts that they may go to, as in tool.http_hosts."""
    secrets: tuple[str, ...] | None = None
    """Secrets that go with their requests, by name."""
    personalities: tuple[str, ...] | None = None
    """Personalities whose tools may reach anything outside."""


class ToolConfig(_Section):
    """The tools that packs bring. Each call of one has these limits, in a sandbox of its own."""

    max_workers: PositiveInt = 4
    """Processes for them in each tier: as many calls run at once."""
    max_seconds: PositiveFloat = 30.0
    """From a call's begin to its end."""
    max_cpu_seconds: PositiveFloat = 5.0
    """Time on a processor."""
    max_memory_mib: int = Field(default=256, ge=64, le=4095)
    """Memory of the interpreter and the tool."""
    max_output_bytes: int = Field(default=256 * 1024, ge=1, le=1024 * 1024)
    """The result, as JSON."""
    max_host_calls: PositiveInt = 32
    """What it asks of the host."""
    max_egress_bytes: PositiveInt = 4 * 1024 * 1024
    """What it sends and receives, in all."""
    http_hosts: tuple[Host, ...] = ()
    """Hosts that it may call where its pack's manifest says so, too: `host`, or `host:port`."""
    secrets: tuple[ToolSecretConfig, ...] = ()
    """What the host adds to requests."""
    mcp_servers: dict[str, McpServerConfig] = Field(default_factory=dict[str, McpServerConfig])
    """Model Context Protocol server -> how it is reached."""
    max_mcp_connections: PositiveInt = 16
    """Connections to such servers, which are processes where those are programs."""
    tenant_policies: dict[str, TenantPolicyConfig] = Field(default_factory=dict[str, TenantPolicyConfig])
    """Tenant -> what its tools may do; absent: all that packs and the operator allow."""
    native_python: str = ""
    """The interpreter of packs that ask for the native tier; empty: none gets it."""


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
    """Service -> address; missing: in this process, or at its socket in the data directory."""
    server: ServerConfig = ServerConfig()
    auth: AuthConfig = AuthConfig()
    tls: TlsConfig = TlsConfig()
    database: DatabaseConfig = DatabaseConfig()
    log: LogConfig = LogConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    provider: ProviderConfig = ProviderConfig()
    memory: MemoryConfig = MemoryConfig()
    personality: PersonalityConfig = PersonalityConfig()
    tool: ToolConfig = ToolConfig()
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
        raise _invalid(str(path), None, "no such file", "name an existing TOML file, or none") from None
    except OSError as error:
        raise _invalid(str(path), None, f"cannot be read: {error.strerror}", "name a TOML file, or none") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(str(path), None, f"not TOML: {error}", "mend the line it names") from None


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
    problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return _invalid(
        key, str(first["input"]), f"{problem} (in {origin} or {PREFIX}{key.upper().replace('.', '__')})", fix
    )


def _invalid(key: str, value: str | None, problem: str, fix: str) -> AgentShellError:
    """Without a value, `key` is the name of the file."""
    what = f"file {key!r}" if value is None else f"key {key!r} = {value!r}"
    return AgentShellError(
        error_pb2.ERROR_REASON_CONFIG_INVALID,
        f"configuration {what}: {problem}; {fix}",
        metadata={"key": key, "value": value or "", "fix": fix},
    )


def _default_data_dir() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "agentshell"
