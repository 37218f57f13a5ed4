"""Measures calls to vendors: a span and metrics for each attempt at an endpoint.

Spans and OpenTelemetry metrics follow the semantic conventions for generative AI, which are not stable yet: all of
their names are in the table below. Prometheus metrics have names of their own. Labels are bounded: a model that is
neither priced nor configured counts as `other`, since its name comes from a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Final

from opentelemetry import metrics, trace
from prometheus_client import Counter, Gauge, Histogram

from agentshell.mesh.errors import AgentShellError
from agentshell.mesh.telemetry import TRACER
from agentshell.provider.breaker import State
from agentshell.provider.endpoint import Endpoint
from kfm.content.v1 import content_pb2
from kfm.provider.v1 import provider_service_pb2 as pb

# Semantic conventions for generative AI, as of November 2026.
_OPERATION: Final = "gen_ai.operation.name"
_PROVIDER: Final = "gen_ai.provider.name"
_REQUEST_MODEL: Final = "gen_ai.request.model"
_STREAM: Final = "gen_ai.request.stream"
_RESPONSE_MODEL: Final = "gen_ai.response.model"
_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
_CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
_REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
_TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - no secret
_ERROR: Final = "error.type"
_DURATION: Final = "gen_ai.client.operation.duration"
_TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
_TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - no secret
# Vendors with another name there than here.
_PROVIDERS: Final = {"gemini": "gcp.gemini", "mistral": "mistral_ai", "xai": "x_ai"}

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LABELS = ("operation", "provider", "model")
CALL_SECONDS: Final = Histogram("agentshell_provider_seconds", "Time of a call to a vendor.", _LABELS, buckets=_SECONDS)
FIRST_DELTA_SECONDS: Final = Histogram(
    "agentshell_provider_first_delta_seconds", "Time to an answer's first delta.", _LABELS, buckets=_SECONDS
)
ERRORS: Final = Counter(
    "agentshell_provider_errors_total", "Calls that failed, or that an endpoint was spared.", [*_LABELS, "reason"]
)
TOKENS: Final = Counter("agentshell_provider_tokens_total", "Tokens, by their kind.", ["provider", "model", "kind"])
COST_MICROS: Final = Counter(
    "agentshell_provider_cost_micros_total", "Known cost, in millionths.", ["provider", "model", "currency"]
)
REPLAYS: Final = Counter("agentshell_provider_replays_total", "Answers given again for a repeated request_id.")
CACHE_HITS: Final = Counter("agentshell_provider_cache_hits_total", "Answers given from the response cache.")
REPAIRS: Final = Counter(
    "agentshell_provider_repairs_total", "Answers that broke their output_schema and went back for repair."
)
BREAKER_STATE: Final = Gauge(
    "agentshell_provider_breaker_state", "Of an endpoint: 0 closed, 1 half-open, 2 open.", ["endpoint"]
)
CALLS_ACTIVE: Final = Gauge("agentshell_provider_calls_active", "Calls under way at an endpoint.", ["endpoint"])
CALLS_WAITING: Final = Gauge("agentshell_provider_calls_waiting", "Calls that wait for an endpoint.", ["endpoint"])
_STATES: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}

_METER = metrics.get_meter("agentshell")
_duration = _METER.create_histogram(_DURATION, "s", "Time of a call to a vendor.")
_first_chunk = _METER.create_histogram(_TIME_TO_FIRST_CHUNK, "s", "Time to an answer's first delta.")
_token_usage = _METER.create_histogram(_TOKEN_USAGE, "{token}", "Tokens of a call to a vendor.")


class Subject:
    """An operation of a provider's model, measured together. Keeps its labelled metrics: looking them up is costly."""

    def __init__(self, operation: str, provider: str, vendor: str, model: str) -> None:
        self.operation = operation
        self.attributes = {_OPERATION: operation, _PROVIDER: _PROVIDERS.get(vendor, vendor), _REQUEST_MODEL: model}
        self._labels = (operation, provider, model)
        self._seconds = CALL_SECONDS.labels(*self._labels)
        self._first_delta_seconds = FIRST_DELTA_SECONDS.labels(*self._labels)
        # Like a histogram's, these rows exist before anything is counted.
        self._tokens = {kind: TOKENS.labels(provider, model, kind) for kind in ("input", "cached_input", "output")}
        self._cost: dict[str, Counter] = {}

    def first_delta(self, seconds: float) -> None:
        """Counts the time to an answer's first delta."""
        self._first_delta_seconds.observe(seconds)
        _first_chunk.record(seconds, self.attributes)

    def used(self, usage: content_pb2.Usage) -> None:
        """Counts what a call used."""
        cached = usage.cached_input_tokens
        self._tokens["input"].inc(max(0, usage.input_tokens - cached))
        self._tokens["cached_input"].inc(cached)
        self._tokens["output"].inc(usage.output_tokens)
        if usage.HasField("cost"):
            self._costs(usage.cost.currency_code).inc(usage.cost.amount_micros)
        _token_usage.record(usage.input_tokens, {**self.attributes, _TOKEN_TYPE: "input"})
        _token_usage.record(usage.output_tokens, {**self.attributes, _TOKEN_TYPE: "output"})

    def ended(self, seconds: float, failure: AgentShellError | None) -> None:
        """Counts a call, and why it failed, if it did."""
        self._seconds.observe(seconds)
        if failure is None:
            _duration.record(seconds, self.attributes)
        else:
            self.failed(failure)
            _duration.record(seconds, {**self.attributes, _ERROR: failure.name})

    def failed(self, failure: AgentShellError) -> None:
        """Counts only a failure, such as that of a call that was never made."""
        ERRORS.labels(*self._labels, failure.name).inc()

    def _costs(self, currency: str) -> Counter:
        _, provider, model = self._labels
        found = self._cost.get(currency)
        if found is None:
            found = self._cost[currency] = COST_MICROS.labels(provider, model, currency)
        return found


@cache
def subject(operation: str, provider: str, vendor: str, model: str) -> Subject:
    """Returns the subject of an operation and a model. Model names must come from a bounded set: all are kept."""
    return Subject(operation, provider, vendor, model)


class Measurement:
    """One attempt, while it is under way. `model` is as the request names it."""

    __slots__ = ("_span", "_started", "_subject")

    def __init__(self, subject: Subject, model: str) -> None:
        self._subject = subject
        self._started = time.perf_counter()
        self._span = _span(subject, model)

    def first_delta(self) -> None:
        """Notes that the answer has begun."""
        seconds = time.perf_counter() - self._started
        self._subject.first_delta(seconds)
        if self._span.is_recording():
            self._span.set_attribute(_FIRST_CHUNK, seconds)

    def end(self, usage: content_pb2.Usage, failure: AgentShellError | None, answer: object = None) -> None:
        """Notes the end: what was used, and the failure or the answer."""
        self._subject.used(usage)
        self._subject.ended(time.perf_counter() - self._started, failure)
        if not self._span.is_recording():
            return
        self._span.set_attributes(
            {
                _INPUT_TOKENS: usage.input_tokens,
                _CACHED_TOKENS: usage.cached_input_tokens,
                _CACHE_WRITE_TOKENS: usage.cache_write_tokens,
                _OUTPUT_TOKENS: usage.output_tokens,
                _REASONING_TOKENS: usage.reasoning_tokens,
            }
        )
        if isinstance(answer, pb.GenerateResponse):
            reason = pb.FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_").lower()
            self._span.set_attributes({_RESPONSE_MODEL: answer.model, _FINISH_REASONS: [reason]})
        if failure is not None:
            self._span.set_attribute(_ERROR, failure.name)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


def watch(endpoint: Endpoint) -> None:
    """Exports an endpoint's state from now on. It is read only when scraped, and costs calls nothing."""
    gauges: list[tuple[Gauge, Callable[[], float]]] = [
        (BREAKER_STATE, lambda: _STATES[endpoint.breaker.state]),
        (CALLS_ACTIVE, lambda: endpoint.slots.in_use),
        (CALLS_WAITING, lambda: endpoint.slots.waiting),
    ]
    for gauge, read in gauges:
        gauge.labels(endpoint.label).set_function(read)


def _span(subject: Subject, model: str) -> trace.Span:
    parent = trace.get_current_span().get_span_context()
    if parent.is_valid and not parent.trace_flags.sampled:
        return trace.INVALID_SPAN  # What the sampler would decide, at a hundredth of the cost.
    attributes = {**subject.attributes, _REQUEST_MODEL: model, _STREAM: subject.operation == "chat"}
    return TRACER.start_span(f"{subject.operation} {model}", kind=trace.SpanKind.CLIENT, attributes=attributes)
