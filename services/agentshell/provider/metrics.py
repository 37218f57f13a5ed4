"""What calls to providers are measured by: one span and one set of Prometheus figures a call.

Span names and attributes are OpenTelemetry's for generative AI. Labels are bounded: a model that is not in the price
table counts as `other`, since its name comes from a request.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from prometheus_client import Counter, Histogram

from agentshell.mesh import errors
from agentshell.mesh.telemetry import TRACER
from agentshell.provider import pricing
from kfm.content.v1 import content_pb2

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LABELS = ("operation", "provider", "model")
CALL_SECONDS: Final = Histogram("agentshell_provider_seconds", "Time of a call to a vendor.", _LABELS, buckets=_SECONDS)
FIRST_DELTA_SECONDS: Final = Histogram(
    "agentshell_provider_first_delta_seconds", "Time to an answer's first delta.", _LABELS, buckets=_SECONDS
)
ERRORS: Final = Counter("agentshell_provider_errors_total", "Calls that failed.", [*_LABELS, "reason"])
TOKENS: Final = Counter("agentshell_provider_tokens_total", "Tokens, by their kind.", ["provider", "model", "kind"])
COST_MICROS: Final = Counter(
    "agentshell_provider_cost_micros_total", "Known cost, in millionths.", ["provider", "model", "currency"]
)
REPLAYS: Final = Counter("agentshell_provider_replays_total", "Answers given again for a repeated request_id.")

_OTHER_MODEL = "other"


class Measurement:
    """One call to a vendor, while it is under way."""

    def __init__(self, operation: str, provider: str, model: str) -> None:
        self._labels = (operation, provider, model if pricing.find(provider, model) else _OTHER_MODEL)
        self._started = time.perf_counter()
        self._has_delta = False
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
        }
        self._span = TRACER.start_span(f"{operation} {model}", kind=trace.SpanKind.CLIENT, attributes=attributes)

    def delta(self) -> None:
        """Notes that the answer has grown."""
        if not self._has_delta:
            self._has_delta = True
            FIRST_DELTA_SECONDS.labels(*self._labels).observe(time.perf_counter() - self._started)

    def used(self, usage: content_pb2.Usage, model: str) -> None:
        """Notes what the answer used, and the model that gave it."""
        _, provider, label = self._labels
        fresh_tokens = max(0, usage.input_tokens - usage.cached_input_tokens)
        for kind, count in (
            ("input", fresh_tokens),
            ("cached_input", usage.cached_input_tokens),
            ("output", usage.output_tokens),
        ):
            TOKENS.labels(provider, label, kind).inc(count)
        if usage.HasField("cost"):
            COST_MICROS.labels(provider, label, usage.cost.currency_code).inc(usage.cost.amount_micros)
        if self._span.is_recording():
            self._span.set_attribute("gen_ai.response.model", model)
            self._span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
            self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_input_tokens)

    def end(self, failure: BaseException | None) -> None:
        """Ends the measurement."""
        CALL_SECONDS.labels(*self._labels).observe(time.perf_counter() - self._started)
        if failure is not None:
            name = errors.of(failure).name
            ERRORS.labels(*self._labels, name).inc()
            self._span.set_attribute("error.type", name)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


@contextmanager
def measure(operation: str, provider: str, model: str) -> Generator[Measurement]:
    """Measures the call that the block makes."""
    measurement = Measurement(operation, provider, model)
    try:
        yield measurement
    except BaseException as failure:  # A cancelled call is measured as well.
        measurement.end(failure)
        raise
    measurement.end(None)
