"""`agentshell packs`, as people type it; `packs test`, which runs whole turns, is in the flow tests."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.contract.test_personality import PLAIN, ready, serving, write
from typer.testing import CliRunner, Result

from agentshell.cli import app
from agentshell.personality import cases, files, manifest_schema, signature
from agentshell.personality.cases import Case, Outcome
from agentshell.personality.yaml_file import PackError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["packs", *map(str, arguments)])


def made(directory: Path) -> Path:
    assert run("new", "chef", "--in", directory).exit_code == 0
    return directory / "chef"


def test_a_new_pack_is_good_and_its_editor_knows_the_schema(tmp_path: Path) -> None:
    folder = made(tmp_path)
    checked = run("validate", folder)
    assert (checked.exit_code, checked.stderr) == (0, "")
    digest = run("digest", folder).stdout.strip()
    assert checked.stdout == f"{folder}: chef 0.1.0 is valid, {digest}\n"
    assert (folder.parent / manifest_schema.FILE).read_text() == manifest_schema.text()
    assert (
        (folder / "manifest.yaml").read_text().startswith("# yaml-language-server: $schema=../manifest.schema.json\n")
    )
    assert list(cases.parse(files.of_folder(folder))) == ["knows what it is"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["new", "a/b"], 2, "'a/b' cannot be a personality's id: manifest.yaml:2: id: write 1 to 128 letters"),
        (["new", "chef"], 2, "chef already exists; choose another id"),
        (["validate", "nowhere"], 2, "nowhere is not a directory; name the folder of a pack"),
        (["digest", "nowhere"], 2, "nowhere is not a directory; name the folder of a pack"),
        (["pack", "chef", "--key", "chef/manifest.yaml"], 2, "chef/manifest.yaml: "),
        (["test", "chef", "--case", "other"], 2, "chef has no such case in tests/*.yaml; it has: knows what it is"),
        (["list", "--address", "127.0.0.1:1"], 3, "`agentshell up` starts a mesh"),
    ],
)
def test_what_cannot_be_done_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(made(tmp_path).parent)
    monkeypatch.setenv("AGENTSHELL_API_KEY", "as_x")
    ended = run(*arguments)
    assert (ended.exit_code, ended.stdout) == (code, "")
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "manifest.yaml",
            "version",
            "vershun",
            "manifest.yaml:3: vershun: unknown key; remove it, or correct its spelling",
        ),
        (
            "prompts/system.md",
            "{{ most",
            "{{ least",
            "prompts/system.md:1: 'least_words' is undefined; give it a default",
        ),
        ("tests/cases.yaml", "input", "imput", "tests/cases.yaml:4: cases.0.imput: unknown key; remove it"),
        (
            "tests/cases.yaml",
            "contains: [personality pack]",
            "matches: ['(']",
            "tests/cases.yaml:5: cases.0.matches.0: not a reg",
        ),
    ],
)
def test_what_is_wrong_with_a_pack_is_named_with_its_file_and_line(
    tmp_path: Path, file: str, old: str, new: str, expected: str
) -> None:
    folder = made(tmp_path)
    good = shutil.copytree(folder, tmp_path / "good")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    ended = run("validate", folder, good)
    first, *_, last = ended.stdout.splitlines()
    assert ended.exit_code == 1
    assert first.startswith(f"{folder}/{expected}")
    assert last.startswith(f"{good}: chef 0.1.0 is valid")


def test_all_that_is_wrong_with_a_manifest_is_said_at_once(tmp_path: Path) -> None:
    folder = made(tmp_path)
    text = (folder / "manifest.yaml").read_text()
    (folder / "manifest.yaml").write_text(text.replace("version: 0.1.0", "version: 1").replace("tags", "tag"))
    assert run("validate", folder).stdout.splitlines() == [
        f"{folder}/manifest.yaml:6: tag: unknown key; remove it, or correct its spelling",
        f"{folder}/manifest.yaml:3: version: not a semantic version; write three numbers, such as 1.0.0",
    ]


def test_a_packed_pack_is_the_same_and_its_signature_counts(tmp_path: Path) -> None:
    folder, key, archive = made(tmp_path), tmp_path / "key.pem", tmp_path / "chef.tar.gz"
    made_with_a_new_key, ended = (run("pack", folder, "--key", key, "--out", archive) for _ in range(2))
    assert (made_with_a_new_key.exit_code, ended.exit_code, ended.stderr) == (0, 0, "")
    assert key.stat().st_mode & 0o777 == 0o600
    public = signature.public_key(key.read_bytes())
    assert f"by the key {public}, for personality.trusted_keys" in ended.stdout
    content, signed = archive.read_bytes(), Path(f"{archive}.sig").read_bytes()
    assert signature.is_by_one_of([signature.read_public_key(public)], content, signed)
    assert files.of_archive(content) == files.of_folder(folder)
    run("pack", folder, "--out", archive)
    assert not Path(f"{archive}.sig").exists(), "an old signature is not of the new archive"


async def test_what_the_mesh_serves_is_listed_with_what_is_wrong_and_reloaded(tmp_path: Path) -> None:
    async with serving(tmp_path, tenant_defaults={"acme": "chef@1.0.0"}) as mesh:
        reach = mesh.options(tmp_path)
        folder = write(mesh.packs / "chef", PLAIN.format(id="chef"), "P")
        write(mesh.packs / "chef-next", PLAIN.format(id="chef").replace("1.0.0", "1.1.0"), "P")
        await mesh.service.start()
        await ready(mesh)
        ended = await asyncio.to_thread(run, "list", *reach)
        assert (ended.exit_code, ended.stderr) == (0, "")
        rows = [line.split() for line in ended.stdout.splitlines()]
        assert [row[:-2] for row in rows[1:]] == [
            ["chef", "1.1.0", "by", "its", "id", "serving", "none"],
            ["chef", "1.0.0", "unless", "another", "is", "named", "serving", "none"],
        ]
        assert [row[-1] for row in rows[1:]] == ["packs/chef-next", "packs/chef"]

        (folder / "prompt.md").write_text("{{ nobody }}")
        write(mesh.packs / "new", "id: new\n", "P")
        ended = await asyncio.to_thread(run, "reload", *reach[:2], *reach[4:])  # An operator needs no API key.
        wrong = [
            "packs/chef/prompt.md:1: 'nobody' is undefined; give it a default in system_prompt.variables",
            "packs/new/manifest.yaml:1: version: missing; add it (and 3 more)",
        ]
        assert (ended.exit_code, ended.stdout.splitlines()[-3:]) == (1, [*wrong, "2 live, 2 broken"])
        ended = await asyncio.to_thread(run, "list", *reach)
        assert ended.exit_code == 1
        assert "broken; its last good version serves" in ended.stdout
        assert ended.stdout.splitlines()[-2:] == wrong
        ended = await asyncio.to_thread(run, "list", "--json", *reach)
        told: dict[str, Any] = json.loads(ended.stdout)
        assert [failure["metadata"]["source"] for failure in told["failures"]] == ["packs/chef", "packs/new"]
        for secret in (b"of another mesh, as long as ours" * 2, None):
            file = tmp_path / "mesh.key"
            file.unlink() if secret is None else file.write_bytes(secret)
            ended = await asyncio.to_thread(run, "list", *reach)
            assert (ended.exit_code, "broken" in ended.stdout) == (0, False), "a tenant is told of what serves alone"


CASE = Case(name="n", input="i", tools=("clock", "sum"), contains=("Soup",), not_contains=("salt",), matches=(r"\d+",))


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome("Onion soup takes 40 minutes.", ("sum", "clock", "sum")), []),
        (Outcome("", (), "it broke"), ["no answer: it broke"]),
        (Outcome("40 SOUPS", ("sum",)), ["called sum, not clock, sum"]),
        (Outcome("40 soups", ()), ["called no tool, not clock, sum"]),
        (
            Outcome("Salt it.", ("sum", "clock")),
            ["does not contain 'Soup'", "contains 'salt'", r"does not match '\\d+'", "the answer: Salt it."],
        ),
    ],
)
def test_a_turn_is_compared_with_what_its_case_expects(outcome: Outcome, expected: list[str]) -> None:
    assert list(cases.problems(CASE, outcome)) == expected


def test_a_case_that_expects_no_tool_is_not_one_that_says_nothing_of_tools() -> None:
    called = Outcome("x", ("clock",))
    assert list(cases.problems(Case(name="n", input="i", tools=()), called)) == ["called clock, not none"]
    assert list(cases.problems(Case(name="n", input="i"), called)) == []


def test_two_cases_of_one_name_are_refused() -> None:
    one = b"cases:\n  - {name: a, input: b}\n"
    with pytest.raises(PackError) as caught:
        cases.parse({"tests/b.yaml": one, "tests/a.yaml": one, "tests/readme.md": b"x"})
    assert str(caught.value) == "tests/b.yaml:2: 'a' appears twice; rename one"
