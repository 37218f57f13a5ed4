"""Logs, metrics and traces of a process: structlog JSON on stderr, Prometheus, OpenTelemetry."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, TextIO, cast

import structlog
from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBasedTraceIdRatio, Sampler
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram

from agentshell.mesh import redaction
from agentshell.mesh.config import TelemetryConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

PROPAGATOR: Final = TraceContextTextMapPropagator()
TRACER: Final = trace.get_tracer("agentshell")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RPC_SECONDS: Final = Histogram("agentshell_rpc_seconds", "Time to answer an RPC.", ["method", "code"], buckets=_SECONDS)
RPCS_ACTIVE: Final = Gauge("agentshell_rpcs_active", "RPCs under way.", ["method"])

TURN_SECONDS: Final = Histogram("agentshell_turn_seconds", "From acknowledgement to end.", ["state"], buckets=_SECONDS)
TURNS_ACTIVE: Final = Gauge("agentshell_turns_active", "Turns under way in this process.")
STEPS: Final = Counter("agentshell_steps_total", "Attempts at steps ended.", ["kind", "outcome"])
STEP_SECONDS: Final = Histogram("agentshell_step_seconds", "Time of an attempt.", ["kind"], buckets=_SECONDS)


# What this file adds to an event.
_OWN_KEYS: Final = frozenset({"timestamp", "level", "trace_id"})
# Without local variables: they may hold what must not be logged.
_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def setup(config: TelemetryConfig, member: str) -> None:
    """Configures this process's logs and traces. Raises CONFIG_INVALID if the exporter is not installed."""
    _setup_logs(config)
    sampler: Sampler = ParentBasedTraceIdRatio(config.sample_ratio) if config.otlp_endpoint else ALWAYS_OFF
    resource = Resource.create({"service.name": f"agentshell-{member}"})
    provider = TracerProvider(sampler=sampler, resource=resource)
    if config.otlp_endpoint:
        try:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        except ImportError:
            raise AgentShellError(
                error_pb2.ERROR_REASON_CONFIG_INVALID,
                "configuration key 'telemetry.otlp_endpoint' needs the exporter; pip install 'agentshell[otlp]'",
            ) from None
        exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, insecure=True)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=config.otlp_endpoint, insecure=True))
        metrics.set_meter_provider(MeterProvider([reader], resource))
    trace.set_tracer_provider(provider)


def enter_span(
    name: str,
    traceparent: str,
    tracestate: str = "",
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    attributes: Mapping[str, str] | None = None,
) -> trace.Span:
    """Starts a span in the trace that W3C headers name, and makes it this task's current span; the caller ends it.

    In an unsampled trace it returns an invalid span, and the task gets the trace alone.
    """
    within, is_unsampled = _context_of(traceparent, tracestate)
    span = trace.INVALID_SPAN
    if not is_unsampled:
        span = TRACER.start_span(name, within, kind=kind, attributes=attributes)
        within = trace.set_span_in_context(span, within)
    context.attach(within)  # Never detached: the context ends with the task, which is soon.
    return span


@lru_cache(maxsize=1024)
def _context_of(traceparent: str, tracestate: str) -> tuple[Context, bool]:
    """Returns the trace context that W3C headers name, and whether its trace is unsampled."""
    within = PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate})
    parent = trace.get_current_span(within).get_span_context()
    return within, parent.is_valid and not parent.trace_flags.sampled


def traceparent() -> str:
    """Returns the current W3C trace context; empty if there is none."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id(traceparent: str) -> str:
    """Returns the trace id of a W3C trace context; empty if there is none."""
    return traceparent.split("-")[1] if traceparent.count("-") == 3 else ""


class _Stderr:
    """Where log lines go. If nobody reads them, or the disk is full, they are lost and nothing else is."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def _setup_logs(config: TelemetryConfig) -> None:
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_id,
    ]
    plainly = structlog.dev.ConsoleRenderer(sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    renderer: list[structlog.typing.Processor] = (
        [_TRACEBACKS, _redact, structlog.processors.JSONRenderer()]
        if config.log_format == "json"
        else [structlog.processors.format_exc_info, _redact, plainly]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=True,
    )


def _redact(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: value if key in _OWN_KEYS else redaction.redact_all(value) for key, value in event.items()}


def _add_trace_id(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        event["trace_id"] = f"{current.trace_id:032x}"
    return event
