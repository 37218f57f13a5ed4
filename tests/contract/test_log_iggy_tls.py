"""The log in Iggy over TLS: AGENTSHELL_TEST_IGGY_TLS names a server whose authority is known only by `tls_ca_file`."""

from __future__ import annotations

import os
import uuid

import pytest
from tests.contract.log_stores import PARTITIONS, names, read_all, reason_of, record

from agentshell.log.log import Topic
from kfm.error.v1 import error_pb2

pytest.importorskip("apache_iggy", reason="the SDK of Iggy is not installed")
from agentshell.log.iggy import IggyLog

URL = "AGENTSHELL_TEST_IGGY_TLS"


@pytest.fixture
def url() -> str:
    if not (url := os.environ.get(URL)):
        pytest.skip(f"{URL} names no Iggy server, such as iggy://iggy:iggy@localhost:8090?tls=true&tls_ca_file=ca.pem")
    return url


async def test_records_go_through_tls_and_back(url: str) -> None:
    log = await IggyLog.open(url, stream=f"test-{uuid.uuid4().hex}")
    try:
        await log.ensure_topic(Topic("topic", PARTITIONS))
        lease = await log.join("topic", "group", "m")
        await log.append("topic", [record("a")], lease)
        assert names(await read_all(log)) == names(await log.poll(lease, 10, 0)) == ["a"]
    finally:
        await log.close()


async def test_a_server_of_another_authority_or_name_is_not_spoken_to_nor_one_without_tls(url: str) -> None:
    server, _, options = url.partition("?")
    assert "tls_ca_file=" in options
    strangers = {
        f"{server}?tls=true": error_pb2.ERROR_REASON_LOG_UNAVAILABLE,
        f"{url}&tls_domain=stranger.example": error_pb2.ERROR_REASON_LOG_UNAVAILABLE,
        f"{server}?tls=true&tls_ca_file=no-such.pem": error_pb2.ERROR_REASON_CONFIG_INVALID,
        server: error_pb2.ERROR_REASON_LOG_UNAVAILABLE,
    }
    assert {stranger: await reason_of(IggyLog.open(stranger)) for stranger in strangers} == strangers
