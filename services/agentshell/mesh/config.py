"""The configuration: defaults, then a TOML file, then `AGENTSHELL_*` variables. Each concern has its own class.

A variable names its key with `__` between the levels: `AGENTSHELL_RUNTIME__MAX_STEPS=10`. An unknown key or a
malformed value stops the start, with an error that names the key, the value and the fix.
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
# What `log.topics` may name. A turn's outputs are looked up where its events are: both topics have the same partitions.
TOPICS = ("agent.turns", "agent.outputs", "agent.steps", "agent.turns.dlq", "agent.steps.dlq")
_OUTPUTS, _TURNS = "agent.outputs", "agent.turns"
_MAX_PORT = 65_535
_MAX_TTL_SECONDS = 100 * 366 * 24 * 3600
# Not configuration keys: the path of the file, a client's credential, and what only tests read.
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
"""A name or an address, at its scheme's own port, or at the port given."""


class ServerConfig(_Section):
    """Where this process listens and how it stops."""

    address: HostPort = "127.0.0.1:7700"
    """Host:port for clients; port 0 takes a free one."""
    mesh_address: str = ""
    """`unix:PATH` or host:port for the mesh; empty: a socket in the data directory."""
    http_address: HostPort = "127.0.0.1:7701"
    """Host:port of /metrics and /health; port 0: a free one."""
    drain_seconds: PositiveFloat = 10.0
    """How long calls in flight may take to end at shutdown."""
    max_message_bytes: PositiveInt = 4 * 1024 * 1024
    """The largest message accepted."""


class AuthConfig(_Section):
    """Who may call."""

    keys_file: Path | None = None
    """API keys; empty: api-keys.json in the data directory."""
    mesh_key_file: Path | None = None
    """The mesh's own secret; empty: mesh.key in the data directory."""


class TlsConfig(_Section):
    """TLS at host:port, for clients and for the mesh; unix sockets are plaintext. Files are PEM."""

    certificate_file: Path | None = None
    """The certificate of this process, with any intermediate ones; absent: it serves plaintext."""
    key_file: Path | None = None
    """Its private key, without a password."""
    client_ca_file: Path | None = None
    """Authorities of client certificates: a client without one is refused, whatever its key; absent: none is needed."""
    ca_file: Path | None = None
    """Authorities of the mesh members that this process calls; absent: the well-known ones."""

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
    """A topic's own settings, where they differ from those of the log."""

    partitions: PositiveInt | None = None
    """Absent: log.partitions."""
    retention_days: PositiveInt | None = None
    """Absent: log.retention_days; dead letters are kept for ever."""


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
            raise ValueError(f"there is no topic {unknown[0]!r}; the topics are {', '.join(TOPICS)}")
        turns = topics.get(_TURNS, TopicConfig()).partitions or info.data.get("partitions")
        if topics.get(_OUTPUTS, TopicConfig()).partitions not in (None, turns):
            raise ValueError(f"{_OUTPUTS!r} has as many partitions as {_TURNS!r}, {turns}: leave its own out")
        return topics

    def partitions_of(self, topic: str) -> int:
        """Returns how many partitions a topic has."""
        own = self.topics.get(_TURNS if topic == _OUTPUTS else topic, TopicConfig())
        return own.partitions or self.partitions

    def retention_days_of(self, topic: str) -> int | None:
        """Returns a topic's own retention; None: it has none of its own."""
        return self.topics.get(topic, TopicConfig()).retention_days


class RuntimeConfig(_Section):
    """Turns. A `default_` applies if neither the request nor the pack sets one; a `max_` is the most either may set."""

    default_turn_seconds: PositiveFloat = 120.0
    """From a turn's acknowledgement to its end."""
    max_turn_seconds: PositiveFloat = 3600.0
    """The most seconds that a turn may ask for."""
    default_steps: PositiveInt = 25
    """Steps of a turn."""
    max_steps: PositiveInt = 1000
    """The most steps that a turn may ask for."""
    default_attempts: PositiveInt = 3
    """Attempts at a step that fails for a transient reason."""
    max_attempts: PositiveInt = 10
    """The most attempts that a turn may ask for."""
    step_seconds: PositiveFloat = 60.0
    """One attempt at a step that sets no time of its own."""
    max_history_messages: PositiveInt = 40
    """Messages of the session that a model is shown."""
    max_passages: PositiveInt = 6
    """Passages that a memory step finds."""
    max_active_turns: PositiveInt = 2000
    """Turns under way in a manager; the others wait in the log. More than a tenant's, so that none fills it."""
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
    """Turns that are neither over nor waiting for somebody; more are refused."""
    max_open_turns_per_tenant: PositiveInt = 1_000
    """The same, for one tenant."""
    max_depth: int = Field(default=4, ge=1, le=16)
    """Levels of turns that agent steps may start below a turn."""
    http_hosts: tuple[Host, ...] = ()
    """Hosts that HTTP steps may call: `host`, or `host:port`."""
    max_http_bytes: PositiveInt = 256 * 1024
    """The largest response that an HTTP step accepts."""


class EndpointConfig(_Section):
    """One of several ways to reach a vendor. An empty field takes the vendor's value."""

    base_url: str = ""
    """Where the vendor's API is."""
    api_key_env: str = ""
    """The variable that holds the key."""
    api_key_file: Path | None = None
    """The file that holds the key."""
    weight: PositiveInt = 1
    """Its share of the calls, relative to the others' weights."""


class VendorConfig(_Section):
    """A model vendor. Its name is what requests call `provider`."""

    adapter: str = ""
    """The API it speaks: local, openai, openai_chat, openai_compatible, anthropic, gemini; empty: the vendor's name."""
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
    """How long the vendor may be silent within a call; after that, the call fails and is made elsewhere."""
    max_concurrent_calls: PositiveInt = 64
    """Calls under way at one endpoint."""
    max_waiting_calls: int = Field(default=256, ge=0)
    """Calls waiting at one endpoint; more are refused."""


class BudgetConfig(_Section):
    """What may be spent in a period. A call that may not fit is refused with BUDGET_EXHAUSTED."""

    per: Literal["tenant", "principal", "session"] = "tenant"
    """Whose budget it is: each tenant, principal or session has its own."""
    period: Literal["day", "month"] = "day"
    """How long it lasts, in UTC."""
    tenant: str = ""
    """The only tenant it applies to; empty: it applies to each."""
    cost_usd: PositiveFloat | None = None
    """The most that calls may cost."""
    tokens: PositiveInt | None = None
    """The most tokens that calls may read and write."""


class BreakerConfig(_Section):
    """When an endpoint is left alone for a while."""

    failures: PositiveInt = 5
    """Consecutive failures that open it."""
    open_seconds: PositiveFloat = 10.0
    """How long it stays open before one call may try."""


_Routes = dict[str, tuple[Annotated[str, Field(pattern=r"^[^/]+/.+$")], ...]]


class ProviderConfig(_Section):
    """Models."""

    default: str = "local"
    """The provider when none is named."""
    vendors: dict[str, VendorConfig] = Field(default_factory=dict[str, VendorConfig])
    """Vendor -> how to call it. local, openai, openai_chat, anthropic and gemini exist without an entry."""
    aliases: _Routes = Field(default_factory=_Routes)
    """Alias -> models as `provider/model`, tried in order until one answers."""
    tenant_aliases: dict[str, _Routes] = Field(default_factory=dict[str, _Routes])
    """Tenant -> aliases of its own, which take precedence over the others."""
    personality_aliases: dict[str, _Routes] = Field(default_factory=dict[str, _Routes])
    """Personality -> aliases of its own, which take precedence over the tenant's."""
    max_attempts: PositiveInt = 3
    """Calls to one model of an alias that fail for a transient reason."""
    default_max_output_tokens: PositiveInt = 16_384
    """Tokens that a model may write when a budget applies and the request sets no limit of its own."""
    prices_file: Path | None = None
    """Prices in the format of the table that ships, which they override."""
    budgets: tuple[BudgetConfig, ...] = ()
    """What may be spent."""
    breaker: BreakerConfig = BreakerConfig()


class NamespaceConfig(_Section):
    """A rule for namespaces."""

    namespace: str = Field(pattern=r"^(user|session|personality|knowledge)/[A-Za-z0-9_.:-]{0,128}$")
    """The name of one, or the prefix of names up to the slash, such as `session/`."""
    ttl_seconds: float | None = Field(default=None, gt=0, le=_MAX_TTL_SECONDS)
    """How long a record lives after it is written, unless it sets an expiry itself; absent: for ever."""
    embedder: str = Field(default="lexical", pattern=r"^(lexical|local/.+|[^/]+/.+)$")
    """What makes its vectors: `lexical`, `local/<name>` of memory.local_models, or a provider's `provider/model`."""
    dimension: int = Field(default=0, ge=0, le=16_000)
    """The length of the vectors of a provider's model. A new embedder makes all vectors again, in the background."""

    @model_validator(mode="after")
    def _check_dimension(self) -> Self:
        if (self.embedder == "lexical" or self.embedder.startswith("local/")) == bool(self.dimension):
            raise ValueError("`dimension` is required for a provider's model, and allowed for nothing else")
        return self


class MemoryConfig(_Section):
    """Memory."""

    namespaces: tuple[NamespaceConfig, ...] = ()
    """Rules for namespaces; the first that matches one applies."""
    local_models: dict[str, Path] = Field(default_factory=dict[str, Path])
    """Name -> directory of a model of the BERT family (model.safetensors, tokenizer.json, config.json), for the
    embedder `local/<name>`. Different weights need a different name."""
    sweep_seconds: PositiveFloat = 60.0
    """How often expired records, which are no longer read, are removed."""
    chunk_characters: int = Field(default=1200, ge=100, le=16_384)
    """The most characters of a chunk."""
    chunk_overlap_characters: int = Field(default=150, ge=0)
    """How many characters a chunk repeats of the one before."""
    summary_model: str = ""
    """What summarises what no longer fits a session's window: `provider/model` or an alias; empty: the default."""
    summary_tokens: int = Field(default=500, ge=50, le=4000)
    """The most tokens of a summary."""
    cache: Literal["process", "redis", "off"] = "process"
    """Where search results and windows are cached, until something changes."""
    cache_seconds: PositiveFloat = Field(default=60.0, le=3600)
    """For how long at most."""
    cache_mib: PositiveInt = 64
    """How much a process caches."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where Redis is."""
    store: Literal["pgvector", "qdrant", "weaviate"] = "pgvector"
    """What searches vectors: Postgres, which keeps them all anyway, or an index beside it."""
    qdrant_url: str = "http://127.0.0.1:6333"
    """Where Qdrant is."""
    weaviate_url: str = "http://127.0.0.1:8080"
    """Where Weaviate is."""
    weaviate_grpc_port: PositiveInt = 50051
    """Its gRPC port."""
    index_key_env: str = ""
    """The variable that holds the index's API key; empty: it needs none."""

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        for rule in self.namespaces:
            kind, _, name = rule.embedder.partition("/")
            if kind == "local" and name not in self.local_models:
                raise ValueError(f"namespaces: {rule.embedder!r} is not a model of local_models")
        return self


class PersonalityConfig(_Section):
    """Personality packs."""

    directories: tuple[Path, ...] = ()
    """Where packs are; empty: those that ship with Agent Shell."""
    archives: tuple[str, ...] = ()
    """Packs as .tar.gz: files, or https://..., each with its signature beside it under the same name plus `.sig`."""
    trusted_keys: tuple[str, ...] = ()
    """Ed25519 public keys whose signatures are trusted, as base64."""
    allow_unsigned: Literal["none", "directories", "all"] = "directories"
    """Which packs are loaded without a signature: none, those in directories, or archives as well."""
    default: str = "guide"
    """The personality when none is named: an id, or id@version."""
    tenant_defaults: dict[str, str] = Field(default_factory=dict[str, str])
    """Tenant -> its own default."""
    versions: dict[str, str] = Field(default_factory=dict[str, str])
    """Personality -> the version that answers when none is requested; missing: the newest."""


class ToolSecretConfig(_Section):
    """A header that the mesh adds to what some packs' tools send to one host: it never enters their sandbox."""

    name: str = ""
    """Its name in manifests and policies; empty: the same as `value_env`."""
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
    """A Model Context Protocol server: a program of the operator's, which runs in no sandbox, or an address."""

    personalities: tuple[str, ...]
    """Whose packs may expose its tools."""
    command: str = ""
    """The program, which speaks on its standard streams; one process runs for each tenant that calls it."""
    args: tuple[str, ...] = ()
    """Its arguments."""
    env: dict[str, str] = Field(default_factory=dict[str, str])
    """Its environment, and nothing else but `pass_env`. Keep secrets in variables of this process."""
    pass_env: tuple[str, ...] = ()
    """Variables of this process that it also gets."""
    url: str = ""
    """Where it is, instead of a program; its host must be in tool.http_hosts."""
    secret: str = ""
    """The name of the secret in tool.secrets that goes with requests to `url`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("give it a command or a url, and not both")
        return self


class TenantPolicyConfig(_Section):
    """Narrows what a tenant's tools may do of what packs declare and the operator allows. Absent: not narrowed."""

    tools: tuple[str, ...] | None = None
    """Tools that it may use."""
    http_hosts: tuple[str, ...] | None = None
    """Hosts that they may reach, as in tool.http_hosts."""
    secrets: tuple[str, ...] | None = None
    """Secrets that may go with their requests, by name."""
    personalities: tuple[str, ...] | None = None
    """Personalities whose tools may reach anything outside."""


class ToolConfig(_Section):
    """The tools that packs bring. Each call runs in a sandbox of its own, within these limits."""

    max_workers: PositiveInt = 4
    """Processes for them in each tier, and so how many calls run at once."""
    max_seconds: PositiveFloat = 30.0
    """From a call's start to its end."""
    max_cpu_seconds: PositiveFloat = 5.0
    """CPU time."""
    max_memory_mib: int = Field(default=256, ge=64, le=4095)
    """Memory of the interpreter and the tool."""
    max_output_bytes: int = Field(default=256 * 1024, ge=1, le=1024 * 1024)
    """Size of the result, as JSON."""
    max_host_calls: PositiveInt = 32
    """How often it may ask the host for something."""
    max_egress_bytes: PositiveInt = 4 * 1024 * 1024
    """What it sends and receives in total."""
    http_hosts: tuple[Host, ...] = ()
    """Hosts that it may call if its pack's manifest declares them too: `host`, or `host:port`."""
    secrets: tuple[ToolSecretConfig, ...] = ()
    """Headers that the host adds to requests."""
    mcp_servers: dict[str, McpServerConfig] = Field(default_factory=dict[str, McpServerConfig])
    """Model Context Protocol server -> how to reach it."""
    max_mcp_connections: PositiveInt = 16
    """Connections to such servers; for a program, each is a process."""
    tenant_policies: dict[str, TenantPolicyConfig] = Field(default_factory=dict[str, TenantPolicyConfig])
    """Tenant -> what its tools may do; absent: all that packs and the operator allow."""
    native_python: str = ""
    """The interpreter for packs that ask for the native tier; empty: none gets it."""


class TelemetryConfig(_Section):
    """Logs, metrics and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_endpoint: str = ""
    """Host:port of an OTLP collector; empty: spans are not recorded."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """The share of traces recorded."""


class Config(_Section):
    """The whole configuration."""

    data_dir: Path = Field(default_factory=lambda: _default_data_dir())
    """Where everything is kept that must survive."""
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
        raise _invalid(str(path), None, f"not TOML: {error}", "fix the line it names") from None


def _set(values: dict[str, Any], keys: list[str], value: str, name: str) -> None:
    for key in keys[:-1]:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            raise _invalid(name, value, f"{key} is not a section", "remove the variable")
        values = child  # pyright: ignore[reportUnknownVariableType] - TOML's own shape
    try:  # In the environment, lists and tables are written as TOML; anything else as its text.
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
        "`agentshell config` lists the known keys" if first["type"] == "extra_forbidden" else "correct it, or remove it"
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
