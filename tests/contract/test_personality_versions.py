"""Which version of a personality answers: several live at once, chosen by caller, tenant and operator."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.contract.serving import refusal
from tests.contract.test_personality import PLAIN, WHOLE, Mesh, ready, serving, unread, write

from kfm.error.v1 import error_pb2
from kfm.personality.v1 import personality_service_pb2 as pb
from kfm.turn.v1.turn_pb2 import PLAN_STRATEGY_PLANNED


def versioned(personality_id: str, version: str) -> str:
    return PLAIN.format(id=personality_id).replace("1.0.0", version)


async def test_two_versions_are_live_and_the_newest_answers_where_none_is_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as mesh:
        old = write(mesh.packs / "old", versioned("a", "1.9.0"), "Old.")
        new = write(mesh.packs / "new", versioned("a", "1.10.0"), "New.")
        await mesh.service.start()
        assert [(one.version, one.source, one.is_default) for one in (await mesh.list()).personalities] == [
            ("1.10.0", "packs/new", True),
            ("1.9.0", "packs/old", False),
        ]
        assert (await mesh.get("a")).system_prompt == "New."
        pinned = await mesh.get("a@1.9.0")
        assert (pinned.personality_id, pinned.system_prompt) == ("a", "Old.")
        error = await refusal(mesh.get("a@2.0.0"))
        assert error.reason == error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND
        assert error.message == "version 2.0.0 of personality 'a' is not loaded; loaded are: 1.10.0, 1.9.0"

        shutil.rmtree(new)
        await mesh.reload()
        assert (await mesh.get("a")).system_prompt == "Old."
        shutil.rmtree(old)
        await mesh.reload()
        assert (await refusal(mesh.get("a"))).reason == error_pb2.ERROR_REASON_PERSONALITY_NOT_FOUND
        assert (await mesh.get("a", pinned.digest)).system_prompt == "Old."


async def test_watchers_are_told_who_answers_in_the_place_of_a_version_that_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as mesh:
        write(mesh.packs / "old", versioned("a", "1.0.0"), "Old.")
        new = write(mesh.packs / "new", versioned("a", "2.0.0"), "New.")
        await mesh.service.start()
        async with mesh.watch() as change:
            assert [(await change()).loaded.system_prompt for _ in range(2)] == ["New.", "Old."]
            shutil.move(new, tmp_path)
            loaded = (await change()).loaded
            assert (loaded.system_prompt, loaded.is_default) == ("Old.", True)


async def test_the_operator_chooses_versions_and_the_defaults_of_tenants(tmp_path: Path) -> None:
    config = {"versions": {"a": "1.0.0", "gone": "3.0.0"}, "tenant_defaults": {"acme": "a@2.0.0", "other": "b"}}
    async with serving(tmp_path, **config) as mesh:
        for number in (1, 2):
            write(mesh.packs / f"a{number}", versioned("a", f"{number}.0.0"), f"Version {number}.")
        write(mesh.packs / "gone", versioned("gone", "4.0.0"), "Another.")
        write(mesh.packs / "scribe", PLAIN.format(id="scribe"), "The scribe.")
        await mesh.service.start()
        assert (await mesh.get("a")).system_prompt == "Version 1."
        assert (await mesh.get("")).system_prompt == "Version 2.", "acme's own default"
        assert (await mesh.list()).default_personality_id == "a@2.0.0"
        assert (await mesh.get("", tenant="somebody")).system_prompt == "The scribe."
        error = await refusal(mesh.get("", tenant="other"))
        assert error.message == "no personality 'b' is loaded; loaded are: a, gone, scribe"
        assert (await refusal(mesh.get("gone"))).message == (
            "version 3.0.0, which 'personality.versions' asks for, of personality 'gone' is not loaded; "
            "loaded are: 4.0.0"
        )


async def test_each_live_version_has_its_own_knowledge_and_the_default_one_that_of_the_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as mesh:
        write(mesh.packs / "old", WHOLE, a="# Old")
        await mesh.service.start()
        await ready(mesh)
        new = write(mesh.packs / "new", WHOLE.replace("2.1.0", "2.2.0-rc.1+7"), a="# Candidate")
        await mesh.reload()
        candidate = await mesh.get("scribe@2.2.0-rc.1+7")
        assert list(candidate.knowledge_namespaces) == ["knowledge/scribe:2.2.0-rc.1-7"]
        assert list((await mesh.get("scribe")).knowledge_namespaces) == ["knowledge/scribe"]
        await ready(mesh)
        async with unread(mesh.service):
            write(new, WHOLE.replace("2.1.0", "2.2.0"), a="# New")
        await mesh.reload()
        await ready(mesh)
        assert (await mesh.get("scribe")).version == "2.2.0"
        assert [(name, documents["knowledge/a.md"][1]) for _, name, _, documents in mesh.memory.ingested[:2]] == [
            ("knowledge/scribe", b"# Old"),
            ("knowledge/scribe:2.2.0-rc.1-7", b"# Candidate"),
        ]
        assert {(name, documents["knowledge/a.md"][1]) for _, name, _, documents in mesh.memory.ingested[2:]} == {
            ("knowledge/scribe", b"# New"),
            ("knowledge/scribe:2.1.0", b"# Old"),
        }


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (pb.ListRequest(), ["a", "b", "c"]),
        (pb.ListRequest(category="x"), ["a", "b"]),
        (pb.ListRequest(tags=["t", "u"]), ["b"]),
        (pb.ListRequest(category="y", capabilities=["can"]), ["c"]),
        (pb.ListRequest(category="z"), []),
    ],
)
async def test_personalities_are_found_by_what_they_say_of_themselves(
    tmp_path: Path, asked: pb.ListRequest, expected: list[str]
) -> None:
    said = {
        "a": "category: x\ntags: [t]\n",
        "b": "category: x\ntags: [t, u]\n",
        "c": "category: y\ncapabilities: [can]\n",
    }
    async with serving(tmp_path) as mesh:
        for personality_id, keys in said.items():
            write(mesh.packs / personality_id, PLAIN.format(id=personality_id) + keys, "P")
        await mesh.service.start()
        assert [one.personality_id for one in await everything(mesh, asked)] == expected


async def everything(mesh: Mesh, asked: pb.ListRequest) -> list[pb.Personality]:
    """Reads the whole list in pages of one."""
    found: list[pb.Personality] = []
    asked.page_size = 1
    while True:
        response = await mesh.ask(asked)
        found += response.personalities
        asked.page_token = response.next_page_token
        if not asked.page_token:
            return found


async def test_a_personality_says_how_its_turns_are_planned(tmp_path: Path) -> None:
    async with serving(tmp_path) as mesh:
        write(mesh.packs / "a", PLAIN.format(id="a") + "plan: {strategy: planned}\n", "P")
        write(mesh.packs / "b", PLAIN.format(id="b") + "plan: {steps: [{step_id: say, model: {}}]}\n", "P")
        await mesh.service.start()
        assert (await mesh.get("a")).strategy == PLAN_STRATEGY_PLANNED
        assert [step.step_id for step in (await mesh.get("b")).plan.steps] == ["say"]
        assert not any(one.HasField("plan") for one in (await mesh.list()).personalities)
