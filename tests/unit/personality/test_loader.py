"""Packs on disk: which are read, which serve, and which links are never followed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from agentshell.mesh.errors import AgentShellError
from agentshell.personality import files, loader
from agentshell.personality.loader import Change, Loader, Rejected, Removed
from agentshell.personality.pack import Pack
from kfm.error.v1 import error_pb2

MANIFEST = "id: {id}\nversion: 1.0.0\nname: N\ndescription: D\nsystem_prompt:\n  template_file: prompt.md\n"


def write(folder: Path, personality_id: str, prompt: str = "Be brief.") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompt.md").write_text(prompt)
    (folder / "manifest.yaml").write_text(MANIFEST.format(id=personality_id))
    return folder


def set_version(folder: Path, version: str) -> None:
    manifest = folder / "manifest.yaml"
    manifest.write_text(re.sub("version: .*", f"version: {version}", manifest.read_text()))


async def changes_of(packs: Loader) -> list[str]:
    """Reloads, and returns the changes in short form."""
    return [shown(change) for change in await packs.reload()]


def shown(change: Change) -> str:
    match change:
        case Pack():
            return f"+{change.personality_id} {change.system_prompt}"
        case Removed():
            return f"-{change.personality_id} {change.version}"
        case Rejected():
            return f"!{change.error().message}"


async def test_a_broken_pack_is_reported_once_and_its_last_good_version_serves(tmp_path: Path) -> None:
    folder = write(tmp_path / "packs" / "a", "a")
    packs = Loader([tmp_path / "packs"])
    assert await changes_of(packs) == ["+a Be brief."]
    (folder / "manifest.yaml").write_text("id: a\nversion: 1\n")
    assert await changes_of(packs) == [
        "!packs/a/manifest.yaml:2: version: not a semantic version; write three numbers, such as 1.0.0 (and 3 more)"
    ]
    assert await changes_of(packs) == []
    [rejected] = packs.rejected()
    assert rejected.error().reason == error_pb2.ERROR_REASON_PACK_INVALID
    serving = {"personality_id": "a", "version": "1.0.0"}
    assert rejected.error().metadata == {"source": "packs/a", "file": "packs/a/manifest.yaml", "line": "2", **serving}
    assert packs.packs["a", "1.0.0"].system_prompt == "Be brief."
    write(folder, "a", "Be long.")
    assert await changes_of(packs) == ["+a Be long."]
    assert packs.rejected() == []


async def test_a_pack_that_was_never_good_is_skipped_and_the_others_serve(tmp_path: Path) -> None:
    write(tmp_path / "good", "good")
    (tmp_path / "bad").mkdir()
    packs = Loader([tmp_path])
    changes = await changes_of(packs)
    assert changes[0] == "+good Be brief."
    assert changes[1].endswith("bad/manifest.yaml: no such file; every folder of a packs directory needs one")
    assert list(packs.packs) == [("good", "1.0.0")]
    [rejected] = packs.rejected()
    assert rejected.serving is None


async def test_a_version_stays_with_the_folder_that_has_it_until_that_is_gone(tmp_path: Path) -> None:
    owner = write(tmp_path / "packs" / "m", "twin", "First.")
    packs = Loader([tmp_path / "packs"])
    await packs.reload()
    write(tmp_path / "packs" / "a", "twin", "Second.")
    refusal = "!packs/a/manifest.yaml:1: id: packs/m already has version 1.0.0 of 'twin'; choose another id, or version"
    assert await changes_of(packs) == [refusal]
    assert await changes_of(packs) == []
    assert packs.packs["twin", "1.0.0"].system_prompt == "First."
    (owner / "prompt.md").write_text("")
    assert await changes_of(packs) == ["!packs/m/prompt.md: renders to nothing; say who the personality is"]
    assert packs.packs["twin", "1.0.0"].system_prompt == "First."
    shutil.rmtree(owner)
    assert await changes_of(packs) == ["+twin Second."]


async def test_of_two_new_packs_with_one_version_the_first_directory_has_it(tmp_path: Path) -> None:
    write(tmp_path / "z" / "one", "twin", "First.")
    write(tmp_path / "a" / "two", "twin", "Second.")
    packs = Loader([tmp_path / "z", tmp_path / "a"])
    assert await changes_of(packs) == [
        "+twin First.",
        "!a/two/manifest.yaml:1: id: z/one already has version 1.0.0 of 'twin'; choose another id, or version",
    ]


async def test_packs_can_swap_their_ids(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", "a", "One."), write(tmp_path / "two", "b", "Two.")
    packs = Loader([tmp_path])
    await packs.reload()
    write(one, "b", "One.")
    write(two, "a", "Two.")
    assert await changes_of(packs) == ["+a Two.", "+b One."]


async def test_a_folder_that_is_gone_takes_its_personality_with_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "a")
    packs = Loader([tmp_path])
    await packs.reload()
    shutil.rmtree(folder)
    assert await changes_of(packs) == ["-a 1.0.0"]


async def test_two_versions_of_a_personality_are_live_at_once_and_one_may_take_the_place_of_another(
    tmp_path: Path,
) -> None:
    write(tmp_path / "old", "a", "Old.")
    new = write(tmp_path / "new", "a", "New.")
    set_version(new, "1.1.0")
    packs = Loader([tmp_path])
    assert await changes_of(packs) == ["+a Old.", "+a New."]
    set_version(new, "1.2.0")
    assert await changes_of(packs) == ["+a New.", "-a 1.1.0"]
    assert sorted(packs.packs) == [("a", "1.0.0"), ("a", "1.2.0")]


async def test_folders_are_refused_where_everything_must_be_signed(tmp_path: Path) -> None:
    write(tmp_path / "packs" / "a", "a")
    [change] = await changes_of(Loader([tmp_path / "packs"], folders=False))
    assert change.startswith("!packs/a: a folder has no signature; configure its archive")


async def test_hidden_files_and_backups_are_no_part_of_a_pack(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "a")
    packs = Loader([tmp_path])
    await packs.reload()
    for name in (".swp", "manifest.yaml~"):
        (folder / name).write_text("x")
    write(tmp_path / ".git", "git")
    assert await changes_of(packs) == []


@pytest.mark.parametrize("target", ["/etc", "/etc/hostname", "../outside.md", "../../outside.md"])
async def test_a_link_that_leads_out_of_the_pack_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "outside.md").write_text("secret")
    (tmp_path / "packs" / "outside.md").parent.mkdir()
    (tmp_path / "packs" / "outside.md").write_text("secret")
    (write(tmp_path / "packs" / "a", "a") / "notes.md").symlink_to(target)
    assert await changes_of(Loader([tmp_path / "packs"])) == [
        "!packs/a/notes.md: a link that leads out of the pack; put the file itself there"
    ]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (".", "a link to what the pack already contains; remove it"),
        ("prompt.md", "a link to what the pack already contains; remove it"),
        ("loop", "neither a file nor a directory; remove it"),
        ("nowhere", "neither a file nor a directory; remove it"),
    ],
)
async def test_a_link_that_goes_round_is_refused(tmp_path: Path, target: str, expected: str) -> None:
    (write(tmp_path / "packs" / "a", "a") / "loop").symlink_to(target)
    [change] = await changes_of(Loader([tmp_path / "packs"]))
    assert change.endswith(expected)


async def test_links_within_a_pack_to_hidden_files_are_followed_as_kubernetes_mounts_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "a" / "..data", "a").parent
    for name in ("manifest.yaml", "prompt.md"):
        (folder / name).symlink_to(f"..data/{name}")
    assert await changes_of(Loader([tmp_path])) == ["+a Be brief."]


async def test_a_pipe_in_a_pack_is_refused_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(write(tmp_path / "packs" / "a", "a") / "pipe")
    assert await changes_of(Loader([tmp_path / "packs"])) == [
        "!packs/a/pipe: neither a file nor a directory; remove it"
    ]


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        ("MAX_FILES", 2, "prompt.md: the pack has more than 2 files and directories; remove some"),
        ("MAX_FILE_BYTES", 100, "long.md: larger than 100 bytes; split it"),
        ("MAX_PACK_BYTES", 100, "manifest.yaml: the pack has more than 100 bytes; remove some files"),
    ],
)
async def test_a_pack_over_a_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, expected: str
) -> None:
    monkeypatch.setattr(files, limit, value)
    (write(tmp_path / "packs" / "a", "a") / "long.md").write_text("x" * 200 if limit == "MAX_FILE_BYTES" else "x" * 90)
    assert await changes_of(Loader([tmp_path / "packs"])) == [f"!packs/a/{expected}"]


async def test_a_directory_that_is_not_there_is_a_configuration_error_and_nothing_changes(tmp_path: Path) -> None:
    write(tmp_path / "packs" / "a", "a")
    packs = Loader([tmp_path / "packs"])
    await packs.reload()
    shutil.rmtree(tmp_path / "packs")
    with pytest.raises(AgentShellError) as caught:
        await packs.reload()
    assert caught.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
    assert caught.value.metadata["key"] == "personality.directories"
    assert list(packs.packs) == [("a", "1.0.0")]


async def test_the_packs_that_ship_are_all_good() -> None:
    packs = Loader([loader.shipped()])
    await packs.reload()
    assert packs.rejected() == []
    assert [version for version in packs.packs if packs.packs[version].documents] == [("guide", "1.0.0")]
