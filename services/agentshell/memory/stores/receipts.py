"""Receipts: all that remains of what was forgotten. They hold none of its text, and name no user."""

from __future__ import annotations

import hashlib
from datetime import datetime

from agentshell.db.database import Connection
from agentshell.mesh import ids
from agentshell.mesh.call import Principal
from kfm.memory.v1.memory_service_pb2 import Receipt

USER_PREFIX = "user/"

_COLUMNS = "receipt_id, namespace, user_digest, what, record_count, message_count, principal_id"
_ADD = f"""
    INSERT INTO memory.receipts (tenant_id, {_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
    RETURNING create_time"""  # noqa: S608 - literals of this file
_READ = f"""
    SELECT {_COLUMNS}, create_time FROM memory.receipts
    WHERE tenant_id = %(tenant)s AND (%(before)s::text IS NULL OR receipt_id < %(before)s)
        AND (%(user)s = '' OR user_digest = %(user)s)
    ORDER BY receipt_id DESC LIMIT %(limit)s"""  # noqa: S608 - literals of this file


async def add(connection: Connection, principal: Principal, receipt: Receipt) -> Receipt:
    """Stores a receipt, in the transaction that it reports, and returns it as stored, with its id and time."""
    if receipt.user_id:
        receipt.user_digest = _digest(principal.tenant_id, receipt.user_id)
        receipt.ClearField("user_id")
    if receipt.namespace.startswith(USER_PREFIX):
        digest = _digest(principal.tenant_id, receipt.namespace.removeprefix(USER_PREFIX))
        receipt.namespace = f"{USER_PREFIX}{digest}"
    receipt.receipt_id, receipt.principal_id = ids.ulid(), principal.principal_id
    counts = (receipt.record_count, receipt.message_count)
    columns = (receipt.receipt_id, receipt.namespace, receipt.user_digest, receipt.what, *counts, receipt.principal_id)
    cursor = await connection.execute(_ADD, (principal.tenant_id, *columns))
    [(create_time,)] = await cursor.fetchall()
    receipt.create_time.FromDatetime(create_time)
    return receipt


async def read(connection: Connection, tenant_id: str, user_id: str, before: str | None, limit: int) -> list[Receipt]:
    """Returns receipts before the id `before`, newest first; with `user_id`, only that user's, with the user named."""
    user = _digest(tenant_id, user_id) if user_id else ""
    cursor = await connection.execute(_READ, {"tenant": tenant_id, "user": user, "before": before, "limit": limit})
    found = [_receipt(*row) for row in await cursor.fetchall()]
    for receipt in found:
        receipt.user_id = user_id
    return found


def _digest(tenant_id: str, user_id: str) -> str:
    return f"sha256:{hashlib.sha256(f'{tenant_id} {user_id}'.encode()).hexdigest()}"


def _receipt(
    receipt_id: str,
    namespace: str,
    user_digest: str,
    what: str,
    record_count: int,
    message_count: int,
    principal_id: str,
    create_time: datetime,
) -> Receipt:
    """Returns the receipt in _COLUMNS and a time."""
    receipt = Receipt(receipt_id=receipt_id, namespace=namespace, user_digest=user_digest, what=what)
    receipt.record_count, receipt.message_count = record_count, message_count
    receipt.principal_id = principal_id
    receipt.create_time.FromDatetime(create_time)
    return receipt
