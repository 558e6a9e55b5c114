"""Spans to an OpenTelemetry collector, over OTLP/HTTP. Imported only where an endpoint is set.

The packages of `requirements-otel.txt` have to be there. Sampling, headers, batches and all else are
the SDK's own variables (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, …).
"""

from __future__ import annotations

import os
import socket
from typing import Any

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from core import tracing
from core.tracing import Kind, Trace

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}
_TIMEOUT = 3.0  # seconds; a collector that is away holds up the end of a process no longer


def install(endpoint: str, service: str) -> None:
    """Record from now on. `endpoint` is the collector's base URL; `service` is this kind of process."""
    tracing.recorder = OTLPRecorder(endpoint, service)


class OTLPRecorder:
    """Ended spans wait in memory; a thread of the SDK's sends them, and the end of the process does."""

    def __init__(self, endpoint: str, service: str) -> None:
        resource = Resource.create(
            {
                "service.namespace": "nooble",
                "service.name": f"nooble-{service}",
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            }
        )
        provider = TracerProvider(resource=resource, id_generator=_Ids())
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_TIMEOUT)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = provider.get_tracer("nooble")

    def begin(
        self, name: str, kind: Kind, parent: Trace, attributes: dict[str, Any], at: float | None = None
    ) -> Recorded:
        above = Context() if parent.begins else api.set_span_in_context(NonRecordingSpan(_context_of(parent)))
        return Recorded(
            self._tracer.start_span(
                name,
                context=above,
                kind=_KINDS[kind],
                attributes=attributes,
                start_time=_nanoseconds(at),
            )
        )

    def whole(
        self, name: str, kind: Kind, parent: Trace, attributes: dict[str, Any], begun: float, ended: float
    ) -> None:
        self.begin(name, kind, parent, attributes, begun).end(at=ended)


class _Ids(RandomIdGenerator):
    """The first span of a trace that we have begun is of that trace: its id is in the log already."""

    def generate_trace_id(self) -> int:
        context = tracing.current()
        return int(context.trace.trace_id, 16) if context is not None else super().generate_trace_id()


class Recorded:
    """A span of the SDK's."""

    def __init__(self, span: api.Span) -> None:
        self._span = span
        of = span.get_span_context()
        self.trace = Trace(f"{of.trace_id:032x}", f"{of.span_id:016x}", of.trace_flags.sampled)

    def set(self, **attributes: str | int | float | bool) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def end(self, error: str = "", at: float | None = None) -> None:
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(_nanoseconds(at))


def _context_of(trace: Trace) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), is_remote=True, trace_flags=flags)


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)
