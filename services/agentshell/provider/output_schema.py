"""Checks answers against an output schema, and makes the request that has a bad one repaired. Pure."""

from __future__ import annotations

import json

from agentshell.content import plain, text_of
from agentshell.schema import Schema
from kfm.content.v1.content_pb2 import ROLE_USER, Message, Part, Text
from kfm.provider.v1 import provider_service_pb2 as pb

_REPAIR = "The JSON Schema wants something else: {problem}. Answer again with the mended JSON value, and nothing else."
# Tool calls come before the answer that the schema describes, and what a filter has ended is no answer.
_UNCHECKED = frozenset((pb.FINISH_REASON_TOOL_CALLS, pb.FINISH_REASON_CONTENT_FILTER))


class OutputSchema:
    """The schema of a request's answer. Raises ValueError if it is not a valid one."""

    def __init__(self, generation: pb.Generation) -> None:
        self._schema = Schema(plain(generation.output_schema))

    def problem(self, answer: pb.GenerateResponse) -> str:
        """Returns how an answer breaks the schema; empty: it does not, or the schema does not apply."""
        if answer.finish_reason in _UNCHECKED:
            return ""
        try:
            value = json.loads(text_of(answer.message))
        except (ValueError, RecursionError) as error:
            return f"not JSON ({error})"
        return self._schema.problem(value)


def repaired(generation: pb.Generation, answer: pb.GenerateResponse, problem: str) -> pb.Generation:
    """Returns the request that shows a model its answer and what is wrong with it."""
    again = pb.Generation()
    again.CopyFrom(generation)
    again.messages.append(answer.message)
    again.messages.append(Message(role=ROLE_USER, parts=[Part(text=Text(text=_REPAIR.format(problem=problem)))]))
    return again
