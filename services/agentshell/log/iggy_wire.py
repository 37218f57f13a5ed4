"""A connection to Iggy: the only module that uses its SDK. Every call is bounded, and none is abandoned midway.

The SDK returns futures and fails with `RuntimeError`, which has a text but no code. Its own reconnection would wait for
ever and resend what may have arrived, so it is off: after a fault the connection is dropped, and the next call opens a
new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast
from urllib.parse import parse_qs, unquote, urlsplit

from apache_iggy import (
    AutoLogin,
    Consumer,
    Durability,
    HeaderKey,
    HeaderValue,
    IggyClient,
    IggyExpiry,
    MaxTopicSize,
    PollingStrategy,
    ReceiveMessage,
    SendMessage,
    TcpConfig,
    TcpReconnectionConfig,
    TopicDetails,
)

from agentshell.log.log import RECORD_ID_BYTES, Record, StoredRecord, Topic
from agentshell.mesh.errors import AgentShellError, invalid
from kfm.error.v1 import error_pb2

T = TypeVar("T")

CALL_SECONDS = 5.0
MAX_NAME_BYTES = 255
SERVER_SERIES = "0.9."  # Neither clients nor data directories work across minor releases.
_SCHEMES = ("iggy", "iggy+tcp")
_RETRY_DELAY = timedelta(seconds=1)
_EPOCH = datetime.fromtimestamp(0, UTC)
# Errors that a retry does not help. There are no codes to recognise them by.
_REFUSALS = ("invalid credentials", "invalid personal access token", "unauthenticated", "incompatible", "invalid tls")
# Raw keys, unlike the headers of a record, which are strings: their names cannot collide.
_KEY, _ID = HeaderKey.Raw(b"key"), HeaderKey.Raw(b"id")
_CONSUMER = Consumer.Single("agentshell")  # It stores no offsets.


@dataclass(frozen=True, slots=True)
class IggyTopic:
    """A topic on the server. `ends` are the next offsets of its partitions."""

    name: str
    relaxed: bool
    retention: timedelta | None
    ends: Sequence[int]


def unavailable(what: str, cause: BaseException | None = None) -> AgentShellError:
    """Returns the error of a log that cannot be reached."""
    detail = f" ({str(cause) or type(cause).__name__})" if cause else ""
    return AgentShellError(
        error_pb2.ERROR_REASON_LOG_UNAVAILABLE,
        f"the log could not {what}{detail}: check that its Iggy server runs and accepts connections, then try again",
        retry_delay=_RETRY_DELAY,
        cause=cause,
    )


def stream_of(url: str) -> str:
    """Returns the stream that a URL names after its port, or the default stream."""
    return unquote(urlsplit(url).path.strip("/")) or "agentshell"


def tcp_config(url: str) -> TcpConfig:
    """Reads `iggy://USER:PASSWORD@HOST:PORT`, or `iggy://TOKEN@HOST:PORT`; `iggy+tcp` is the same.

    For TLS, add `?tls=true&tls_domain=NAME&tls_ca_file=FILE`: the server's certificate must be for that name (by
    default HOST) and from that authority (by default a public one).

    Raises CONFIG_INVALID, which does not repeat the URL because it contains a secret.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or parts.scheme not in _SCHEMES or not host or not port or not parts.username:
        raise _misconfigured(
            "the URL of the log does not have the form iggy://USER:PASSWORD@HOST:PORT or iggy://TOKEN@HOST:PORT; "
            "correct it, and write / in a password or token as %2F"
        )
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if strange := options.keys() - {"tls", "tls_domain", "tls_ca_file"}:
        raise _misconfigured(f"the URL of the log has unknown options {sorted(strange)}; remove them")
    tls = options.get("tls", "false")
    # Otherwise a secret would cross the network in plain text unnoticed.
    if tls not in ("true", "false") or (tls == "false" and options.keys() - {"tls"}):
        raise _misconfigured("the URL of the log must have tls=true to use TLS and its options, or tls=false alone")
    user = unquote(parts.username)
    return TcpConfig(
        server_address=f"{host}:{port}",
        auto_login=AutoLogin.username_password(user, unquote(parts.password))
        if parts.password is not None
        else AutoLogin.personal_access_token(user),
        reconnection=TcpReconnectionConfig(enabled=False, max_retries=0),
        tls_enabled=tls == "true",
        tls_domain=options.get("tls_domain"),
        tls_ca_file=options.get("tls_ca_file"),
        nodelay=True,
    )


class Wire:
    """One connection to one stream, with one request under way at a time: each role has its own.

    `lost` is called when it breaks.
    """

    def __init__(self, url: str, stream: str, lost: Callable[[], None] | None = None) -> None:
        self._config = tcp_config(url)
        self._stream = stream
        self._lost = lost
        self._client: IggyClient | None = None
        self._connecting = asyncio.Lock()
        self._under_way: set[asyncio.Task[object]] = set()
        self._closed = False

    async def close(self) -> None:
        """Waits for what is under way, and drops the connection."""
        self._closed = True
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._client = None

    async def ping(self) -> None:
        """Returns if the server answers."""
        await self._call("see that it is healthy", lambda client: client.ping())

    async def make_stream(self) -> None:
        """Creates the stream, unless it exists."""

        async def make(client: IggyClient) -> None:
            if await client.get_stream(self._stream) is None:
                await _unless_there(client.create_stream(self._stream))

        await self._call("make its stream", make)

    async def topic(self, name: str) -> IggyTopic | None:
        """Returns the topic, or None if there is none. Raises INVALID_REQUEST if the name is too long."""
        if len(name.encode()) > MAX_NAME_BYTES:
            raise invalid("topic", f"has the name {name!r} in Iggy, of more than {MAX_NAME_BYTES} bytes; shorten it")
        details = await self._call("find a topic", lambda client: client.get_topic(self._stream, name))
        return _topic(details) if details else None

    async def counts(self) -> dict[str, int]:
        """Returns how many records each topic retains."""
        topics = await self._call("look at its topics", lambda client: client.get_topics(self._stream))
        return {topic.name: topic.messages_count for topic in topics}

    async def make_topic(self, topic: Topic, *, segment_bytes: int | None = None, max_bytes: int | None = None) -> None:
        """Creates the topic, unless it exists. Above `max_bytes`, its oldest segments are deleted."""

        async def make(client: IggyClient) -> None:
            await _unless_there(
                client.create_topic(
                    self._stream,
                    topic.name,
                    topic.partitions,
                    message_expiry=_expiry(topic.retention),
                    max_topic_size=MaxTopicSize.Custom(max_bytes) if max_bytes else MaxTopicSize.Unlimited(),
                    segment_size=segment_bytes,
                    durability=Durability.PERSISTED if topic.durability == "durable" else Durability.REPLICATED,
                )
            )

        await self._call("make a topic", make)

    async def retain(self, name: str, retention: timedelta | None) -> None:
        """Sets how long a topic retains its records."""
        await self._call(
            "set the retention of a topic",
            lambda client: client.update_topic(
                self._stream, name, name, message_expiry=_expiry(retention), max_topic_size=MaxTopicSize.Unlimited()
            ),
        )

    async def enter(self, topic: str, group: str) -> None:
        """Makes this connection a member of one of Iggy's own consumer groups, creating the group if necessary."""

        async def enter(client: IggyClient) -> None:
            await _unless_there(client.create_consumer_group(self._stream, topic, group))
            await client.join_consumer_group(self._stream, topic, group)

        await self._call("enter a group", enter)

    async def groups(self, topic: str) -> dict[str, int]:
        """Returns how many connections each of Iggy's own consumer groups of a topic has."""
        groups = await self._call("look at groups", lambda client: client.get_consumer_groups(self._stream, topic))
        return {group.name: group.members_count for group in groups}

    async def remove_group(self, topic: str, group: str) -> None:
        """Removes one of Iggy's own consumer groups, if it exists."""

        async def remove(client: IggyClient) -> None:
            if await client.get_consumer_group(self._stream, topic, group) is not None:
                await client.delete_consumer_group(self._stream, topic, group)

        await self._call("remove a group", remove)

    async def send(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        """Appends records, durably, and returns the offset of the first; the others follow it."""
        messages = [_message(record) for record in records]
        answer = await self._call(
            "append", lambda client: client.send_messages(self._stream, topic, partition, messages)
        )
        return answer.confirmations[0].base_offset

    async def poll(self, topic: str, partition: int, offset: int, limit: int) -> list[StoredRecord]:
        """Returns the records that exist now, starting at `offset` or at the oldest retained one."""
        return await self._poll(topic, partition, PollingStrategy.Offset(offset), limit)

    async def oldest(self, topic: str, partition: int) -> int | None:
        """Returns the offset of the oldest retained record, or None if there is none."""
        records = await self._poll(topic, partition, PollingStrategy.First(), 1)
        return records[0].offset if records else None

    async def _poll(self, topic: str, partition: int, strategy: PollingStrategy, limit: int) -> list[StoredRecord]:
        messages = await self._call(
            "read records",
            lambda client: client.poll_messages(
                self._stream,
                topic,
                consumer=_CONSUMER,
                polling_strategy=strategy,
                count=limit,
                auto_commit=False,
                partition_id=partition,
            ),
        )
        return [_stored(partition, message) for message in messages]

    async def _call(self, what: str, use: Callable[[IggyClient], Awaitable[T]]) -> T:
        """Makes one exchange. It outlives a cancelled caller, or its answer would be taken for the next exchange's."""
        if self._closed:
            raise unavailable(f"{what}: it is closed in this process")
        exchange = asyncio.create_task(self._exchange(what, use))
        self._under_way.add(exchange)
        exchange.add_done_callback(self._ended)
        return await asyncio.shield(exchange)

    def _ended(self, exchange: asyncio.Task[object]) -> None:
        self._under_way.discard(exchange)
        if not exchange.cancelled():
            exchange.exception()  # Retrieved, since an abandoned one has no caller.

    async def _exchange(self, what: str, use: Callable[[IggyClient], Awaitable[T]]) -> T:
        client = None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                client = await self._connected()
                return await use(client)
        except (RuntimeError, TimeoutError) as error:
            self._drop(client)
            raise unavailable(what, error) from error

    async def _connected(self) -> IggyClient:
        async with self._connecting:
            if self._client is None:
                client = IggyClient(self._config)
                try:
                    await client.connect()
                except RuntimeError as error:
                    if any(text in str(error).lower() for text in _REFUSALS):
                        raise _misconfigured(
                            f"cannot connect to the Iggy server: {error}; check the secret, the certificate, and that "
                            f"the server's version is one that this driver speaks to, {SERVER_SERIES}x"
                        ) from error
                    if self._config.tls_enabled:  # The SDK reports a rejected certificate like silence.
                        raise RuntimeError(
                            f"{error}; over TLS: the cause may be the certificate's name or authority"
                        ) from error
                    raise
                await _check_version(client)
                self._client = client
            return self._client

    def _drop(self, client: IggyClient | None) -> None:
        if client is not None and client is self._client:
            self._client = None
            if self._lost:
                self._lost()


def _misconfigured(message: str) -> AgentShellError:
    return AgentShellError(error_pb2.ERROR_REASON_CONFIG_INVALID, message)


async def _check_version(client: IggyClient) -> None:
    version = (await client.get_stats()).iggy_server_version
    if not version.startswith(SERVER_SERIES):
        raise _misconfigured(
            f"the Iggy server has version {version}, and this driver speaks only to {SERVER_SERIES}x: run a server "
            "of that version"
        )
    if "durability" not in {option.key for option in await client.describe_options("topic")}:
        raise _misconfigured(
            f"the Iggy server, version {version}, cannot promise that what it acknowledges is on disk: it lacks the "
            "topic option 'durability'; run server 0.9.0 or a later 0.9"
        )


async def _unless_there(making: Awaitable[None]) -> None:
    """Ignores that another process has created it at the same time."""
    try:
        await making
    except RuntimeError as error:
        if "already exists" not in str(error):
            raise


def _expiry(retention: timedelta | None) -> IggyExpiry:
    return IggyExpiry.NeverExpire() if retention is None else IggyExpiry.ExpireDuration(retention)


def _topic(details: TopicDetails) -> IggyTopic:
    options: Mapping[object, object] = {
        **details.derived_options.to_scalar_dict(),
        **details.options.to_scalar_dict(),
    }
    relaxed = options.get("durability") != Durability.PERSISTED.value
    expiry = details.message_expiry
    # An empty partition has the same `current_offset` as one with a single record.
    ends = [
        partition.current_offset + 1 if partition.messages_count or partition.current_offset else 0
        for partition in sorted(details.partitions, key=lambda partition: partition.id)
    ]
    retention = expiry.duration if isinstance(expiry, IggyExpiry.ExpireDuration) else None
    return IggyTopic(details.name, relaxed, retention, ends)


def _message(record: Record) -> SendMessage:
    headers: dict[HeaderKey, HeaderValue] = {
        HeaderKey.String(name): HeaderValue.String(value) for name, value in record.headers.items()
    }
    headers[_KEY] = HeaderValue.String(record.key)
    record_id = int.from_bytes(record.record_id)
    if not record_id:  # Iggy replaces zero with an id of its own.
        headers[_ID] = HeaderValue.Raw(record.record_id)
    return SendMessage(record.payload, headers, record_id)


def _stored(partition: int, message: ReceiveMessage) -> StoredRecord:
    key, record_id, headers = "", message.id().to_bytes(RECORD_ID_BYTES), dict[str, str]()
    received = cast("Mapping[HeaderKey, HeaderValue]", message.user_headers() or {})
    for name, value in received.items():
        if isinstance(name, HeaderKey.String) and isinstance(value, HeaderValue.String):
            headers[name.value] = value.value
        elif name == _KEY and isinstance(value, HeaderValue.String):
            key = value.value
        elif name == _ID and isinstance(value, HeaderValue.Raw):
            record_id = value.value
    append_time = _EPOCH + timedelta(microseconds=message.timestamp())
    return StoredRecord(partition, message.offset(), append_time, Record(key, record_id, message.payload(), headers))
