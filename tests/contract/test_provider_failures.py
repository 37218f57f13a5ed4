"""How vendors fail, and what callers are told."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta

import pytest
from tests.contract.provider import KEY, VARIABLE, VENDORS, Subject, asked, question, refusal, subject_of, text_of
from tests.vendors.vendor_server import Fault

from agentshell.provider.adapters.adapter import Access
from agentshell.provider.key import Key
from kfm.error.v1 import error_pb2
from kfm.error.v1.error_pb2 import ErrorReason
from kfm.provider.v1 import provider_service_pb2 as pb

INVALID = error_pb2.ERROR_REASON_PROVIDER_RESPONSE_INVALID
WAIT_SECONDS = 20.0

FAULTS: list[tuple[Fault, ErrorReason.ValueType]] = [
    (Fault(status=400), error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID),
    (Fault(status=400, code="context_length_exceeded"), error_pb2.ERROR_REASON_PROVIDER_CONTEXT_TOO_LONG),
    (
        Fault(status=400, code="invalid_request_error", message="prompt is too long: 9 tokens > 8 maximum"),
        error_pb2.ERROR_REASON_PROVIDER_CONTEXT_TOO_LONG,
    ),
    (Fault(status=400, code="content_policy_violation"), error_pb2.ERROR_REASON_PROVIDER_CONTENT_FILTERED),
    (Fault(status=401, message=f"Bad key {KEY}"), error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID),
    (Fault(status=402), error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID),
    (Fault(status=403), error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID),
    (Fault(status=404), error_pb2.ERROR_REASON_MODEL_NOT_FOUND),
    (Fault(status=408), error_pb2.ERROR_REASON_PROVIDER_TIMEOUT),
    (Fault(status=409), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
    (Fault(status=413), error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID),
    (Fault(status=422), error_pb2.ERROR_REASON_PROVIDER_REQUEST_INVALID),
    (Fault(status=429, retry_after="2.5"), error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED),
    (Fault(status=500), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
    (Fault(status=502), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
    (Fault(status=503, retry_after="2.5"), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
    (Fault(status=504), error_pb2.ERROR_REASON_PROVIDER_TIMEOUT),
    (Fault(status=529), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
    (Fault(error_after=2, code="rate_limit_exceeded"), error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED),
    (Fault(error_after=2, code="overloaded_error"), error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE),
    (Fault(body=b"event: message_start\ndata: {nonsense\n\n"), INVALID),
    (Fault(body=b"event: message_start\ndata: [1, 2]\n\n"), INVALID),
    (Fault(body=b"data: \xff\xfe\n\n"), INVALID),
    (Fault(body=b"<html>Welcome!</html>", content_type="text/html"), INVALID),
    (Fault(content_type="text/html; charset=utf-8"), INVALID),
]


async def test_each_failure_of_a_vendor_has_its_reason_and_shows_no_key(vendor: Subject) -> None:
    for fault, reason in FAULTS:
        vendor.vendor.fault = fault
        vendor.vendor.requests.clear()

        error = await refusal(vendor.stream(question()))

        assert (fault, error.name) == (fault, ErrorReason.Name(reason).removeprefix("ERROR_REASON_"))
        assert error.retry_delay == (timedelta(seconds=2.5) if fault.retry_after else None)
        assert (error.metadata["provider"], error.metadata["model"]) == (vendor.name, vendor.adapter.default_model)
        assert KEY not in repr((error.message, error.metadata))
        assert len(vendor.vendor.requests) == 1  # Retries are decided elsewhere.
        if fault.message == f"Bad key {KEY}":
            assert error.metadata["vendor_message"] == "Bad key [key]"
    vendor.vendor.fault = Fault()
    assert text_of(await vendor.generate(question())) == "Ready to serve."


UNARY_FAULTS: list[tuple[Fault, ErrorReason.ValueType]] = [
    (Fault(status=401), error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID),
    (Fault(status=429, retry_after="2.5"), error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED),
    (Fault(body=b"{nonsense"), INVALID),
    (Fault(body=b"{}"), INVALID),
    (Fault(body=b'{"data": [], "results": []}'), INVALID),
    (Fault(body=b"<html>Welcome!</html>", content_type="text/html"), INVALID),
]


async def test_calls_that_are_not_streamed_fail_for_the_same_reasons(vendor: Subject) -> None:
    adapter = vendor.adapter
    asked = {
        pb.ABILITY_EMBEDDINGS: lambda: adapter.embed(["a"], "m", 0),
        pb.ABILITY_MODERATION: lambda: adapter.moderate(["a"], "m"),
        pb.ABILITY_TOKEN_COUNT: lambda: adapter.count_tokens(question(), "m"),
    }
    for ability in adapter.abilities & asked.keys():
        for fault, reason in UNARY_FAULTS:
            vendor.vendor.fault = fault

            error = await refusal(asked[ability]())

            assert (ability, fault, error.reason) == (ability, fault, reason)
            assert error.retry_delay == (timedelta(seconds=2.5) if fault.retry_after else None)


@pytest.mark.parametrize("is_cut_clean", [False, True])
async def test_an_answer_cut_at_any_event_is_an_error_and_never_an_answer(vendor: Subject, is_cut_clean: bool) -> None:
    events = vendor.vendor.events(asked())
    # Chat Completions are complete once they have a finish reason, even if usage is missing.
    ends = [at for at, event in enumerate(events) if b'"finish_reason": "stop"' in event]
    needed = ends[0] + 1 if ends and is_cut_clean else len(events)
    for at in range(needed):
        vendor.vendor.fault = Fault(cut_after=at, is_cut_clean=is_cut_clean)

        error = await refusal(vendor.stream(question()))

        assert (at, error.name) == (at, "PROVIDER_CONNECTION")
    vendor.vendor.fault = Fault()
    assert text_of(await vendor.generate(question())) == "Ready to serve."


@pytest.mark.parametrize("name", ["openai_chat", "openai_compatible"])
async def test_an_answer_cut_before_its_usage_has_an_estimate(name: str) -> None:
    async with subject_of(name) as chat:
        chat.vendor.fault = Fault(cut_after=len(chat.vendor.events(asked())) - 2, is_cut_clean=True)

        answer = await chat.generate(question())

        assert text_of(answer) == "Ready to serve."
        assert (answer.usage.output_tokens, answer.usage.estimated) == (4, True)


async def test_a_vendor_that_stalls_is_left_when_the_caller_gives_up(vendor: Subject) -> None:
    for stalled in range(len(vendor.vendor.events(asked()))):
        vendor.vendor.fault = Fault(stall_after=stalled)
        vendor.vendor.forget_hang_ups()
        vendor.vendor.requests.clear()
        call = asyncio.create_task(vendor.stream(question()))
        await vendor.vendor.wait_asked()
        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        await vendor.vendor.wait_hung_up()


async def test_deltas_come_at_once_and_closing_closes_the_vendors_connection(vendor: Subject) -> None:
    words = [b"serve." in event for event in vendor.vendor.events(asked())]
    vendor.vendor.fault = Fault(stall_after=words.index(True) + 1)
    text = ""

    stream = vendor.adapter.stream(question(), vendor.adapter.default_model)
    async with asyncio.timeout(WAIT_SECONDS), aclosing(stream) as items:
        async for item in items:  # The vendor sends no end, so all that comes is streamed before it.
            text += "".join(delta.text for delta in item) if isinstance(item, list) else ""
            if text == "Ready to serve.":
                break

    await vendor.vendor.wait_hung_up()


async def test_a_provider_without_a_key_names_the_variable_and_calls_nobody(vendor: Subject) -> None:
    vendor.environment.clear()

    error = await refusal(vendor.generate(question()))

    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_KEY_INVALID
    assert error.metadata == {"provider": vendor.name, "key": f"variable {VARIABLE}"}
    assert vendor.vendor.requests == []


async def test_a_vendor_that_cannot_be_reached_is_a_connection_error(vendor: Subject) -> None:
    await vendor.vendor.__aexit__(None, None, None)

    error = await refusal(vendor.generate(question()))

    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_CONNECTION


async def test_what_does_not_speak_http_is_a_connection_error(vendor: Subject) -> None:
    async def mumble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(mumble, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        key = Key(vendor.name, VARIABLE, environment=vendor.environment)
        adapter = VENDORS[vendor.name].adapter(Access(vendor.name, key, "m", url))
        error = await refusal(Subject(vendor.name, adapter).generate(question()))
        await adapter.close()

    assert error.reason == error_pb2.ERROR_REASON_PROVIDER_CONNECTION


async def test_a_compatible_server_needs_a_base_url_and_a_model() -> None:
    row = VENDORS["openai_compatible"]
    with pytest.raises(Exception, match="no base_url"):
        row.adapter(Access("ollama", Key("ollama")))
    adapter = row.adapter(Access("ollama", Key("ollama"), base_url="http://127.0.0.1:1/v1"))

    for call in (Subject("ollama", adapter).generate(question()), adapter.embed(["a"], "", 0)):
        assert (await refusal(call)).reason == error_pb2.ERROR_REASON_MODEL_NOT_FOUND


async def test_a_vendor_that_says_nothing_for_too_long_has_failed(vendor: Subject) -> None:
    row = VENDORS[vendor.name]
    key = Key(vendor.name, VARIABLE, environment=vendor.environment)
    impatient = row.adapter(Access(vendor.name, key, row.model, vendor.vendor.url + row.base_path, 0.3))
    try:
        for stall_after in (0, 3):
            vendor.vendor.fault = Fault(stall_after=stall_after)
            vendor.vendor.requests.clear()
            error = await refusal(Subject(vendor.name, impatient).generate(question()))
            assert error.reason == error_pb2.ERROR_REASON_PROVIDER_TIMEOUT
            if vendor.vendor.requests:  # Otherwise time ran out before it got that far.
                await vendor.vendor.wait_hung_up()
            vendor.vendor.forget_hang_ups()
    finally:
        await impatient.close()
