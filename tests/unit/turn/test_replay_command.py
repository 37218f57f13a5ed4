"""`agentshell turns replay --file`, as people run it; tests/flow runs it with a mesh."""

from pathlib import Path

from tests.golden.record import compensation, direct, lines_of
from typer.testing import CliRunner, Result

from agentshell.cli import app


def replay(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["turns", "replay", *arguments])


def test_a_history_that_is_decided_as_it_was_is_ok(tmp_path: Path) -> None:
    file = tmp_path / "turns.jsonl"
    file.write_text(lines_of(direct()))
    ended = replay("--file", str(file))
    assert (ended.exit_code, ended.stdout) == (0, "OK        T  7 events\n")


def test_a_divergence_is_shown_and_is_exit_code_1(tmp_path: Path) -> None:
    file = tmp_path / "turns.jsonl"
    file.write_text(lines_of(compensation()).replace('"attempt": 1', '"attempt": 7', 1))
    ended = replay("--file", str(file))
    assert ended.exit_code == 1
    assert ended.stdout.splitlines()[:3] == [
        "diverges  T  13 events, 1 decided differently today; the first:",
        '    on record, offset 2: StepScheduled {"stepId": "T/book", "attempt": 7}',
        '    today: StepScheduled {"stepId": "T/book", "attempt": 1}',
    ]


def test_what_is_no_history_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "turns.jsonl"
    file.write_text('{"event": 1}\n')
    ended = replay("--file", str(file))
    assert ended.exit_code == 2
    assert f"{file}, line 1: " in ended.stderr
    assert replay().exit_code == replay("--all", "--file", str(file)).exit_code == 2
    assert replay("--file", str(tmp_path / "none")).exit_code == 1
