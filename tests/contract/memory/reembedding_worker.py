"""A process that re-embeds, to be killed: `reembedding_worker.py DATABASE_URL PROVIDER KEYS_DIRECTORY`."""

import asyncio
import sys
from pathlib import Path

from agentshell.db.database import Database
from agentshell.memory.embedders.choice import Choice
from agentshell.memory.reembedding import Reembedding
from agentshell.memory.stores.pgvector import PgvectorStore
from agentshell.mesh import channel
from agentshell.mesh.config import MemoryConfig, NamespaceConfig
from agentshell.mesh.credentials import Keyring


async def main(url: str, provider: str, keys: Path) -> None:
    database = await Database.open(url, 4)
    config = MemoryConfig(namespaces=(NamespaceConfig(namespace="user/", embedder="test/small", dimension=256),))
    async with channel.connect(provider, Keyring(keys / "keys.json", keys / "mesh.key")) as way:
        await Reembedding(database, await PgvectorStore.open(database), Choice(config, way)).bring_all()


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
