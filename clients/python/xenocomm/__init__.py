"""Xenocomm: the Python client of Agent Shell.

    import asyncio
    from xenocomm import Client

    async def main() -> None:
        async with Client.connect("127.0.0.1:7700", api_key) as client:
            answer = await client.ask("What happens if the process is killed during a turn?")
            print(answer.text)
            async for update in client.run("And after that?", session=answer.session_id):
                print(*update.delta.texts, sep="", end="")

    asyncio.run(main())

`agentshell up` writes an API key to `default.key` in its data directory. Messages are the contract's own (`kfm.*`).
"""

from xenocomm.answer import Answer
from xenocomm.client import Client
from xenocomm.errors import XenocommError
from xenocomm.stream import TurnStream
from xenocomm.text import Transcript, text_of

__all__ = ["Answer", "Client", "Transcript", "TurnStream", "XenocommError", "text_of"]
