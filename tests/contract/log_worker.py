"""A process with a log, to be killed: `log_worker.py DRIVER URL append|consume TOPIC`. It prints what it has done."""

import asyncio
import itertools
import sys

from agentshell.db.database import Database
from agentshell.log.log import Log, Record
from agentshell.log.postgres import PostgresLog
from agentshell.mesh import ids


async def open_log(driver: str, url: str) -> Log:
    if driver == "iggy":
        from agentshell.log.iggy import IggyLog  # Its SDK is needed only with a server.

        server, _, stream = url.partition("#")
        return await IggyLog.open(server, stream=stream)
    assert driver == "postgres", driver
    return await PostgresLog.open(await Database.open(url, 4))


async def append(log: Log, topic: str) -> None:
    """Appends forever, eight at a time, and prints a line for each acknowledged record."""

    async def producer(key: str) -> None:
        for number in itertools.count():
            name = f"{key}-{number}"
            await log.append(topic, [Record(key, ids.record_id(name), name.encode())])
            print(name, flush=True)

    await asyncio.gather(*(producer(f"key{index}") for index in range(8)))


async def consume(log: Log, topic: str) -> None:
    """Polls two records and commits them, then two more without a commit; prints a line for each, then hangs."""
    lease = await log.join(topic, "group", "victim")
    for round_ in range(2):
        for stored in await log.poll(lease, 2, 10):
            print(stored.record.payload.decode(), flush=True)
            if round_ == 0:
                await log.commit(lease, {stored.partition: stored.offset + 1})
    print("taken", flush=True)
    await asyncio.Event().wait()


async def main(driver: str, url: str, command: str, topic: str) -> None:
    log = await open_log(driver, url)
    await {"append": append, "consume": consume}[command](log, topic)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
