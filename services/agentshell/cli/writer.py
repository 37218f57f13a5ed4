"""Writes a turn to standard output."""

from __future__ import annotations

from typing import TextIO

from agentshell.cli.render import json_line
from kfm.turn.v1.turn_event_pb2 import TurnUpdate
from xenocomm import Answer, Transcript


class AnswerWriter:
    """Writes the answer: to a terminal as it grows, because it can show a restart; elsewhere once it is complete."""

    def __init__(self, out: TextIO, growing: bool | None = None) -> None:
        self._out = out
        self._growing = out.isatty() if growing is None else growing
        self._transcript = Transcript()
        self._shown = ""

    def take(self, update: TurnUpdate) -> None:
        self._transcript.add(update)
        if self._growing:
            self._write(self._transcript.text)

    def end(self) -> Answer:
        try:
            answer = Answer.of(self._transcript.last_event)
            self._write(answer.text)
            return answer
        finally:
            if self._shown and not self._shown.endswith("\n"):
                self._out.write("\n")
            self._out.flush()

    def _write(self, text: str) -> None:
        if not text.startswith(self._shown):  # What an earlier attempt said is void.
            self._out.write("\n\n(the answer starts over)\n\n")
            self._shown = ""
        self._out.write(text[len(self._shown) :])
        self._out.flush()
        self._shown = text


class JsonWriter:
    """Writes every update as a line of Protobuf JSON."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._transcript = Transcript()

    def take(self, update: TurnUpdate) -> None:
        self._transcript.add(update)
        self._out.write(json_line(update) + "\n")
        self._out.flush()

    def end(self) -> Answer:
        return Answer.of(self._transcript.last_event)
