"""Traces by OpenTelemetry: the only place that imports it, and imported only where telemetry is on.

Owns the tracer provider and the exporter's thread. Implements `core.tracing`. Spans are put into a bounded queue and
sent in batches by that thread; when the collector is slow or gone, spans are dropped and requests go on.
Monotonic times become Unix times by the difference of both clocks at the request's beginning.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import Thread
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace.core.protocols import Clock
from headrace.core.tracing import Attributes, Span

_SEND_S = 5.0  # that the collector gets for a batch
_propagator = TraceContextTextMapPropagator()


class OtelSpan:
    """One span. Implements `core.tracing.Span`."""

    __slots__ = ("_clock", "_context", "_offset_ns", "_operation", "_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span, clock: Clock, offset_ns: int, operation: str) -> None:
        self._tracer = tracer
        self._span = span
        self._clock = clock
        self._offset_ns = offset_ns
        self._operation = operation
        self._context = trace.set_span_in_context(span, Context())

    @property
    def trace_id(self) -> str:
        """Return the trace's id in hex."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def begin(self, stage: str, began_s: float | None = None, *, model: str = "", calls_out: bool = False) -> Span:
        """Begin a span below this one; in a trace that is not kept, go on with this one."""
        if not self._span.get_span_context().trace_flags.sampled:
            return self
        span = self._tracer.start_span(
            f"{self._operation} {model}" if model else stage,
            self._context,
            trace.SpanKind.CLIENT if calls_out else trace.SpanKind.INTERNAL,
            {"gen_ai.operation.name": self._operation, "gen_ai.request.model": model} if model else None,
            start_time=self._unix_ns(began_s),
        )
        return OtelSpan(self._tracer, span, self._clock, self._offset_ns, self._operation)

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def end(self, ended_s: float | None = None, *, error: str = "", is_error: bool = False) -> None:
        """End the span."""
        if error:
            self._span.set_attribute("error.type", error)
        if error or is_error:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end(self._unix_ns(ended_s))

    def headers(self) -> dict[str, str]:
        """Return traceparent, and tracestate where the caller sent one."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, self._context)
        return carrier

    def _unix_ns(self, seconds: float | None) -> int:
        return int((self._clock.now() if seconds is None else seconds) * 1e9) + self._offset_ns


class OtelTracer:
    """Begins traces and sends them to a collector, `send_s` seconds a batch. Implements `core.tracing.Tracer`."""

    def __init__(
        self, endpoint: str, sample_ratio: float, clock: Clock, version: str, *, send_s: float = _SEND_S
    ) -> None:
        self._clock = clock
        self._send_s = send_s
        self._exporter: SpanExporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=send_s)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create(
                {"service.name": "headrace", "service.version": version, "service.instance.id": str(uuid4())}
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("headrace", version)

    def begin(self, name: str, operation: str, headers: Mapping[str, str]) -> Span:
        """Begin the span of an HTTP request."""
        began_ns = time.time_ns()  # read once: the spans below are not to begin before this one
        offset_ns = began_ns - int(self._clock.now() * 1e9)
        span = self._tracer.start_span(
            name,
            _propagator.extract(headers, Context()),
            trace.SpanKind.SERVER,
            start_time=began_ns,
        )
        return OtelSpan(self._tracer, span, self._clock, offset_ns, operation)

    def close(self) -> None:
        """Send what has not been sent. Blocks for `send_s` at most; what a collector has not taken by then is lost."""
        last = Thread(target=self._provider.shutdown, name="headrace-traces", daemon=True)
        last.start()
        last.join(self._send_s)
        if last.is_alive():
            self._exporter.shutdown()  # it tries no more
