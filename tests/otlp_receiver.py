"""A collector for tests: takes OTLP over HTTP and decodes what comes, with OpenTelemetry's own protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class ReceivedSpan(NamedTuple):
    """One span as it came over the wire; ids in hex."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    is_error: bool
    service: dict[str, Any]


class OtlpReceiver:
    """What has been received."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.paths: list[str] = []
        self.raw = b""
        self.spans: list[ReceivedSpan] = []
        self._lock = Lock()  # each connection has a thread

    def take(self, path: str, body: bytes) -> None:
        with self._lock:
            self._take(path, body)

    def _take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        ReceivedSpan(
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            kind=span.kind,
                            start_ns=span.start_time_unix_nano,
                            end_ns=span.end_time_unix_nano,
                            attributes=_values(span.attributes),
                            is_error=span.status.code == 2,
                            service=service,
                        )
                    )

    def one(self, name: str, parent: ReceivedSpan | None = None) -> ReceivedSpan:
        """The only span of a name, below `parent` if that is given."""
        found = [s for s in self.spans if s.name == name and (parent is None or s.parent_id == parent.span_id)]
        assert len(found) == 1, (name, [span.name for span in self.spans])
        return found[0]


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def running_receiver() -> Iterator[OtlpReceiver]:
    """Listen on a free port of loopback; it is gone afterwards."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = OtlpReceiver(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
