"""`agentshell doctor`: what is configured, what is reachable, and how to fix what is not."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer

from agentshell.cli import mesh
from agentshell.cli.ending import FAILED
from agentshell.cli.options import Address, ConfigFile, DataDir, KeyFile

if TYPE_CHECKING:
    from agentshell.mesh.config import Config
    from xenocomm import Client

_CHECK_TIMEOUT_SECONDS = 5.0
_MAX_NAMESPACES = 500
_ELSEWHERE = "in another process of the mesh: --address names one to ask"
_SERVICES = ("turn", "memory", "provider", "personality", "tool")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `mend` says how to fix a fault; `ok` is None if the finding is neither good nor a fault."""

    what: str
    ok: bool | None
    says: str
    mend: str = ""


def doctor(
    config_file: ConfigFile = None, data_dir: DataDir = None, address: Address = "", key_file: KeyFile = None
) -> None:
    """Check everything, and say how to fix what is wrong. Exits with 0 if all is well."""
    findings = asyncio.run(_report(config_file, data_dir, address, key_file))
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(FAILED)


async def _report(
    config_file: Path | None, data_dir: Path | None, address: str, key_file: Path | None
) -> list[Finding]:
    findings: list[Finding] = []
    async for finding in _examine(config_file, data_dir, address, key_file):
        findings.append(finding)
        mark, color = {True: ("ok", "green"), False: ("!!", "red"), None: ("--", "yellow")}[finding.ok]
        typer.echo(f"{typer.style(mark, color)}  {finding.what:<14}{finding.says}")
        if finding.mend:
            typer.echo(f"{'':18}-> {finding.mend}")
    return findings


async def _examine(
    config_file: Path | None, data_dir: Path | None, address: str, key_file: Path | None
) -> AsyncGenerator[Finding]:
    from agentshell.mesh.errors import AgentShellError
    from xenocomm import Client, XenocommError

    try:
        config = mesh.load_config(config_file, data_dir)
    except AgentShellError as error:
        yield Finding("configuration", False, error.message, error.metadata.get("fix", ""))
        return
    yield _configuration(config_file)
    yield _data_directory(config.data_dir)
    yield await _database(config)
    for listened in filter(None, (config.server.address, config.server.mesh_address)):
        yield _tls(config, listened)
    try:
        target = mesh.find(config, address, key_file)
        limits: dict[str, Any] = {"timeout_seconds": _CHECK_TIMEOUT_SECONDS, "tls": target.tls or False}
        async with Client.connect(target.address, target.api_key, **limits) as client:
            yield await _services(client, target.address)
            yield await _api_key(client, target)
            yield await _personality(client)
            yield await _vectors(client)
    except AgentShellError as error:
        yield Finding("mesh", False, error.message, error.metadata.get("fix", ""))
    except XenocommError as error:
        yield Finding("mesh", False, error.message, "`agentshell up` starts it; --address names another")
        for key, listened in (("address", config.server.address), ("http_address", config.server.http_address)):
            yield _port(f"server.{key}", listened)
    for finding in _embedders(config):
        yield finding
    for finding in _providers(config):
        yield finding


def _configuration(config_file: Path | None) -> Finding:
    file = config_file or os.environ.get("AGENTSHELL_CONFIG", "")
    names = [name for name in os.environ if name.startswith("AGENTSHELL_") and name != "AGENTSHELL_CONFIG"]
    origin = [f"file {file}"] if file else []
    origin += [f"variables {', '.join(sorted(names))}"] if names else []
    return Finding("configuration", True, f"valid: defaults{''.join(f', {part}' for part in origin)}")


def _data_directory(path: Path) -> Finding:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Finding("data", True, f"{path}{'' if path.exists() else ' (to be made)'}")
    return Finding("data", False, f"this user cannot write to {existing}", "set data_dir to another directory")


def _tls(config: Config, address: str) -> Finding:
    """Checks whether traffic to an address is encrypted, and whether callers can trust its certificate."""
    from agentshell.mesh import tls
    from agentshell.mesh.errors import AgentShellError

    if tls.is_exposed(config.tls, address):
        says = f"none at {address}: credentials and messages cross the network in the clear"
        return Finding(
            "TLS", None, says, "set tls.certificate_file and tls.key_file, unless a proxy before it ends TLS"
        )
    try:
        tls.serving(config.tls, address)
        own = tls.own(config.tls)
    except AgentShellError as error:
        return Finding("TLS", False, error.message, error.metadata.get("fix", ""))
    if own is None or address.startswith("unix:"):
        return Finding("TLS", True, f"none, and none needed: {address} is only reachable from this machine")
    clients = ", for clients that present a certificate" if config.tls.client_ca_file else ""
    says = f"{address} as {', '.join(own.names) or 'no host'} until {own.end_time:%Y-%m-%d %H:%M} UTC{clients}"
    if own.end_time < datetime.now(UTC):
        return Finding("TLS", False, f"{says}: it has expired", "renew it: a running mesh loads new files by itself")
    if not own.names:
        return Finding("TLS", False, says, "name its hosts as subjectAltName: clients look nowhere else")
    return Finding("TLS", True, says)


async def _database(config: Config) -> Finding:
    """Checks the configured Postgres, or else the bundled one: that it answers, or if it is not running, can run."""
    from agentshell.db import binaries
    from agentshell.mesh.errors import AgentShellError

    if config.database.url:
        return await _postgres(config.database.url, "the configured Postgres")
    try:
        programs = binaries.find(binaries.account(config.data_dir / "postgres" / "data"))
    except (AgentShellError, OSError) as error:
        return Finding("database", False, str(error), "install the bundled Postgres, or set database.url")
    directory = config.data_dir.absolute() / "postgres" / "socket"
    if os.access(directory, os.X_OK) and any(directory.glob(".s.PGSQL.*")):
        url = f"postgresql://postgres@/postgres?host={quote(str(directory), safe='')}"
        return await _postgres(url, "the bundled Postgres")
    return Finding("database", True, f"the bundled Postgres, not running: {programs}")


async def _postgres(url: str, name: str) -> Finding:
    import psycopg

    query = (
        "SELECT current_setting('server_version'), (SELECT default_version FROM pg_available_extensions"
        " WHERE name = 'vector')"
    )
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS), await psycopg.AsyncConnection.connect(url) as connection:
            [(version, vector)] = await (await connection.execute(query)).fetchall()
    except (psycopg.Error, TimeoutError) as error:
        said = " ".join(str(error).split()) or "no answer"
        return Finding("database", False, f"{name}: {said}", "start it, or fix database.url (empty: the bundled one)")
    if vector is None:
        return Finding("database", False, f"{name}: {version} without pgvector", "install the extension `vector` there")
    return Finding("database", True, f"{name}: {version}, pgvector {vector}")


async def _services(client: Client, address: str) -> Finding:
    """Reports the health of every service. The process that is called does not know services of other processes."""
    import grpc
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub: Any = health_pb2_grpc.HealthStub(client.channel)  # The stub is untyped.
    states: dict[str, str] = {}
    for name in _SERVICES:
        request = health_pb2.HealthCheckRequest(service=f"kfm.{name}.v1.{name.capitalize()}Service")
        try:
            response = await stub.Check(request, timeout=_CHECK_TIMEOUT_SECONDS)
            states[name] = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        except grpc.aio.AioRpcError as error:
            states[name] = "elsewhere" if error.code() is grpc.StatusCode.NOT_FOUND else error.code().name
    serving = [name for name, state in states.items() if state == "SERVING"]
    others = [f"{name} {state}" for name, state in states.items() if state != "SERVING"]
    says = f"{address}: {', '.join(serving) or 'nothing'} SERVING{''.join(f', {other}' for other in others)}"
    well = states["turn"] == "SERVING" and set(states.values()) <= {"SERVING", "elsewhere"}
    return Finding("mesh", well, says, "" if well else "wait until it is ready; its log says what it waits for")


async def _api_key(client: Client, target: mesh.Target) -> Finding:
    from xenocomm import XenocommError

    mend = f"--key-file or {mesh.KEY_VARIABLE} names one; `agentshell keys create` makes one"
    if not target.api_key:
        return Finding("API key", False, f"none in {target.key_origin}", mend)
    try:
        async for _ in client.list(page_size=1):
            break
    except XenocommError as error:
        return Finding("API key", False, f"{target.key_origin}: {error.message}", mend)
    return Finding("API key", True, f"{target.key_origin}: accepted")


async def _personality(client: Client) -> Finding:
    import grpc
    import grpc.aio

    from kfm.personality.v1 import personality_service_pb2 as pb
    from kfm.personality.v1.personality_service_pb2_grpc import PersonalityServiceStub

    try:
        response = await PersonalityServiceStub(client.channel).Get(pb.GetRequest(), timeout=_CHECK_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return Finding("personality", None, _ELSEWHERE)
        mend = "set personality.default to one that is loaded, or fix its pack"
        return Finding("personality", False, error.details() or error.code().name, mend)
    found = response.personality
    state = pb.KnowledgeState.Name(found.knowledge_state).removeprefix("KNOWLEDGE_STATE_")
    says = f"{found.personality_id} {found.version}, knowledge {'none' if state == 'UNSPECIFIED' else state}"
    if found.knowledge_state == pb.KNOWLEDGE_STATE_FAILED:
        return Finding("personality", False, says, "the mesh's log says why; the mesh tries again by itself")
    return Finding("personality", True, says)


def _port(key: str, address: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_server((host, int(port))):
            return Finding("port", True, f"{address} is free")
    except (OSError, ValueError, OverflowError) as error:
        return Finding("port", False, f"{address}: {error}", f"set {key} to another, or stop what listens there")


async def _vectors(client: Client) -> Finding:
    """Reports which embedders the caller's namespaces use, and which namespaces are changing theirs."""
    import grpc
    import grpc.aio

    from kfm.memory.v1.memory_service_pb2 import StatsRequest
    from kfm.memory.v1.memory_service_pb2_grpc import MemoryServiceStub

    try:
        request = StatsRequest(page_size=_MAX_NAMESPACES)
        response = await MemoryServiceStub(client.channel).Stats(request, timeout=_CHECK_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return Finding("vectors", None, _ELSEWHERE)
        return Finding("vectors", False, error.details() or error.code().name, "the mesh's log says more")
    used = Counter(each.embedder for each in response.namespaces if each.embedder)
    said = [f"{embedder} in {count} namespace{'s' * (count > 1)}" for embedder, count in sorted(used.items())]
    said += [
        f"{each.namespace} changes to {each.next_embedder}: {each.next_embedded_count} of {each.record_count}"
        for each in response.namespaces
        if each.next_embedder
    ]
    first = f" (of the first {_MAX_NAMESPACES} namespaces)" if response.next_page_token else ""
    return Finding("vectors", True, f"{', '.join(said) or 'this tenant has none yet'}{first}, in {response.store}")


def _embedders(config: Config) -> Generator[Finding]:
    """Reports the configured embedder of each rule for namespaces, and of all other namespaces."""
    from agentshell.memory import lexical
    from agentshell.memory.embedders.local import LocalEmbedder
    from agentshell.mesh.errors import AgentShellError

    for rule in config.memory.namespaces:
        says = f"{rule.namespace}: {rule.embedder}{f', {rule.dimension} numbers' if rule.dimension else ''}"
        kind, _, name = rule.embedder.partition("/")
        try:
            if kind == "local":
                LocalEmbedder(rule.embedder, config.memory.local_models[name])
            yield Finding("embedder", True, says)
        except AgentShellError as error:
            yield Finding("embedder", False, f"{says}: {error.message}", error.metadata["fix"])
    yield Finding(
        "embedder", True, f"{'others: ' * bool(config.memory.namespaces)}{lexical.NAME}: words and spelling, no model"
    )


def _providers(config: Config) -> list[Finding]:
    """Reports which vendors' keys are in this environment; the mesh's own environment may differ."""
    from agentshell.provider import vendor, vendors

    findings: list[Finding] = []
    for name, kind in vendors.kinds(config.provider).items():
        keys = vendor.keys(name, config.provider, kind, os.environ)
        missing = ", ".join(key.place for key in keys if not key.find())
        if not keys:
            findings.append(Finding("provider", True, f"{name}: needs no key"))
        elif not missing:
            findings.append(Finding("provider", True, f"{name}: {', '.join(key.place for key in keys)} is set"))
        else:
            is_needed = name in (config.provider.default, *config.provider.vendors)
            fix = f"set it: the configuration names {name}" if is_needed else ""
            findings.append(Finding("provider", False if is_needed else None, f"{name}: {missing} is not set", fix))
    return findings
