"""The documentation shows what the code does."""

from pathlib import Path

from agentshell.turn.diagram import insert

ARCHITECTURE = Path(__file__).parents[3] / "ARCHITECTURE.md"


def test_the_diagrams_in_the_architecture_are_drawn_from_the_tables() -> None:
    text = ARCHITECTURE.read_text()
    assert insert(text) == text, "run `make diagram`"
    assert "stateDiagram" in text
