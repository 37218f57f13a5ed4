"""`agentshell turns replay` and `diff`, over one process and over many."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.flow.mesh import Mesh
from tests.flow.test_cli import Ended, agentshell
from tests.vendors.openai_server import OpenAIChatServer
from tests.vendors.vendor_server import Reply


async def test_turns_are_decided_again_and_compared(mesh: Mesh, vendor: OpenAIChatServer, tmp_path: Path) -> None:
    tenant_id = f"t-{uuid.uuid4().hex[:12]}"

    async def turns(*arguments: str) -> Ended:
        place = ("--address", mesh.address_of("gateway"))
        key = {"AGENTSHELL_API_KEY": mesh.key(tenant_id)}
        return await agentshell("turns", *arguments, *place, data_dir=tmp_path, environment=key)

    async with mesh.client(tenant_id) as client:
        for text in ("It is noon.", "It is noon.", "It is night."):
            vendor.reply = Reply(texts=(text,))
            await client.ask("What time is it?", provider="openai")
        night, noon, before = [turn.turn_id async for turn in client.list()]

    one = await turns("replay", noon)
    assert (one.code, one.err) == (0, "")
    assert one.out.startswith(f"OK        {noon}  ")
    every = await turns("replay", "--all")
    assert [line.split()[:2] for line in every.out.splitlines()] == [["OK", each] for each in (night, noon, before)]
    kept = tmp_path / "turn.jsonl"
    kept.write_text((await turns("show", noon, "--json")).out)
    assert (await turns("replay", "--file", str(kept))).out == one.out

    same = await turns("diff", before, noon)
    assert (same.code, same.err) == (0, "")
    assert {line.split()[0] for line in same.out.splitlines()} == {"same"}
    other = await turns("diff", noon, night)
    assert other.code == 1
    assert [line.strip() for line in other.out.splitlines() if line.strip().startswith(("-It", "+It"))][:2] == [
        "-It is noon.",
        "+It is night.",
    ]
