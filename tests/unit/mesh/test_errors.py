"""One error, one reason, one code; the same on the wire, in an event, and in the contract's own words."""

import re
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.rpc import status_pb2

from agentshell.mesh import errors
from agentshell.mesh.errors import CODES, AgentShellError
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason

CONTRACT = Path(__file__).parents[3] / "proto/kfm/error/v1/error.proto"


def test_every_reason_has_the_code_that_the_contract_says() -> None:
    said = re.findall(r"// ([A-Z_]+): [^\n]*(?:\n\s*//[^\n]*)*\n\s*(ERROR_REASON_\w+) =", CONTRACT.read_text())
    table = {ErrorReason.Name(reason): code.name for reason, code in CODES.items()}
    assert table == {reason: code for code, reason in said}
    assert len(table) == len(ErrorReason.keys()) - 1


def test_an_error_survives_the_wire() -> None:
    error = AgentShellError(
        error_pb2.ERROR_REASON_OVERLOADED,
        "too much",
        metadata={"limit": "3"},
        violations=[("a.b", "is wrong")],
        retry_delay=timedelta(seconds=2),
    )
    back = errors.from_status(errors.to_status(error))
    assert (back.reason, back.code, back.message) == (error.reason, error.code, "too much")
    assert (back.metadata, back.violations, back.retry_delay) == ({"limit": "3"}, error.violations, error.retry_delay)


def test_an_error_survives_an_event_with_its_cause() -> None:
    cause = AgentShellError(error_pb2.ERROR_REASON_PROVIDER_CONNECTION, "cut", retry_delay=timedelta(seconds=1))
    error = AgentShellError(error_pb2.ERROR_REASON_STEP_TIMEOUT, "late", metadata={"step_id": "s"}, cause=cause)
    back = errors.from_failure(errors.to_failure(error))
    assert (back.reason, back.message, back.metadata) == (error.reason, "late", {"step_id": "s"})
    assert isinstance(back.__cause__, AgentShellError)
    assert (back.__cause__.reason, back.__cause__.retry_delay) == (cause.reason, timedelta(seconds=1))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, error_pb2.ERROR_REASON_DEADLINE_EXCEEDED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, error_pb2.ERROR_REASON_TOO_LARGE),
        (grpc.StatusCode.DATA_LOSS, error_pb2.ERROR_REASON_INTERNAL),
    ],
)
def test_a_strangers_status_gets_the_reason_of_its_code(code: grpc.StatusCode, reason: ErrorReason.ValueType) -> None:
    assert errors.from_status(status_pb2.Status(code=code.value[0], message="x")).reason == reason


def test_what_is_not_known_keeps_its_words_to_itself() -> None:
    error = errors.of(RuntimeError("password=hunter2"))
    assert error.reason == error_pb2.ERROR_REASON_INTERNAL
    assert "hunter2" not in error.message
