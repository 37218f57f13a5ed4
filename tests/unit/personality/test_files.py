"""The files of a pack in an archive: which are read, and which never are."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.personality import files
from agentshell.personality.yaml_file import PackError

FILES = {"manifest.yaml": b"id: a", "prompts/system.md": b"Be brief."}


def packed(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """Returns a `.tar.gz`, as anybody could make it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return content.getvalue()


def special(kind: bytes, name: str = "x", target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def refusal(content: bytes) -> str:
    with pytest.raises(PackError) as caught:
        files.of_archive(content)
    return str(caught.value)


def test_an_archive_has_the_files_that_it_was_made_of_and_is_the_same_each_time() -> None:
    archive = files.to_archive(FILES)
    assert files.of_archive(archive) == FILES
    assert archive == files.to_archive(dict(reversed(FILES.items())))


def test_one_folder_around_it_all_is_taken_off_and_what_is_hidden_is_passed_over() -> None:
    inside = [(f"./chef/{name}", content) for name, content in FILES.items()]
    hidden = [("chef/.git/config", b"x"), ("chef/__pycache__/a.pyc", b"x"), ("chef/a~", b"x")]
    assert files.of_archive(packed(special(tarfile.DIRTYPE, "chef"), *inside, *hidden)) == FILES


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (packed(("/etc/passwd", b"x")), "/etc/passwd: the name leads out of the pack; choose another"),
        (packed(("a/../../b", b"x")), "a/../../b: the name leads out of the pack; choose another"),
        (packed(("..", b"x")), "..: the name leads out of the pack; choose another"),
        (packed(("a\nb", b"x")), "'a\\nb': the name has unprintable characters; choose another"),
        (packed(special(tarfile.SYMTYPE, target="/etc/passwd")), "x: neither a file nor a directory; remove it"),
        (packed(special(tarfile.LNKTYPE, target="a")), "x: neither a file nor a directory; remove it"),
        (packed(special(tarfile.FIFOTYPE)), "x: neither a file nor a directory; remove it"),
        (packed(special(tarfile.CHRTYPE)), "x: neither a file nor a directory; remove it"),
        (packed(("a", b"1"), ("./a", b"2")), "a: appears twice in the archive; remove one"),
        (b"", "cut short: the gzip stream has no end; load it again"),
        (b"PK\3\4", "not gzip: "),
        (gzip.compress(b"x" * 2000), "not a tar archive: "),
        (packed(("a", b"x" * 5000))[:-20], "cut short: the gzip stream has no end; load it again"),
        (packed(("a", bytes(files.MAX_FILE_BYTES + 1))), "a: larger than 1048576 bytes; split it"),
        (gzip.compress(bytes(64 * 1024 * 1024)), "the pack has more than 16777216 bytes; remove some files"),
        (packed(*((f"f{number}", b"") for number in range(files.MAX_FILES + 1))), "f1000: the pack has more than 1000"),
    ],
)
def test_what_is_no_pack_is_refused(content: bytes, expected: str) -> None:
    assert refusal(content).startswith(expected)


_plain = gzip.decompress(files.to_archive(FILES))
_mutations = st.lists(st.tuples(st.integers(0, len(_plain) - 1), st.integers(0, 255)), max_size=8)


def mutated(changes: list[tuple[int, int]]) -> bytes:
    content = bytearray(_plain)
    for place, byte in changes:
        content[place] = byte
    return gzip.compress(bytes(content), compresslevel=1)


@pytest.mark.parametrize("strategy", [st.binary(max_size=100), st.binary(max_size=2000).map(gzip.compress)])
def test_any_bytes_are_files_or_a_pack_error(strategy: st.SearchStrategy[bytes]) -> None:
    _check_any(strategy, 100)


def test_any_damage_to_an_archive_leaves_files_or_a_pack_error() -> None:
    _check_any(_mutations.map(mutated), 300)


def _check_any(strategy: st.SearchStrategy[bytes], examples: int) -> None:
    check: Callable[[bytes], None] = _parse
    settings(max_examples=examples)(given(strategy)(check))()


def _parse(content: bytes) -> None:
    with contextlib.suppress(PackError):
        for name in files.of_archive(content):
            assert not name.startswith("/")
            assert ".." not in name.split("/")
