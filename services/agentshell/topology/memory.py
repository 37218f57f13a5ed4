"""The Memory service, over the configured store, index and cache."""

from __future__ import annotations

import os
from functools import partial

from agentshell.memory.cache import cache as caches
from agentshell.memory.embedders.choice import Choice
from agentshell.memory.reembedding import Reembedding
from agentshell.memory.service import MemoryService
from agentshell.memory.stores import index as indexes
from agentshell.memory.stores.beside import BesideStore
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.memory.sweeper import Sweeper
from agentshell.topology.parts import Member, Parts
from kfm.memory.v1.memory_service_pb2_grpc import add_MemoryServiceServicer_to_server


async def build(parts: Parts) -> Member:
    """Builds the service, with the tasks that sweep its records and re-embed them."""
    config, database, provider = parts.config.memory, await parts.database(), parts.channel("provider")
    index = indexes.of(config, os.environ)
    if index is None:
        store = await PgvectorStore.open(database)
    else:
        parts.on_close(index.close)
        store = await BesideStore.open_beside(database, index)
    cache = caches.of(config)
    if cache is not None:
        parts.on_close(cache.close)
    choice = Choice(config, provider)
    service = MemoryService(config, database, store, provider, cache, choice)
    sweeper = Sweeper(database, store, config.sweep_seconds)
    return Member(
        {"kfm.memory.v1.MemoryService": partial(add_MemoryServiceServicer_to_server, service)},
        background=[sweeper.run, Reembedding(database, store, choice).run],
    )
