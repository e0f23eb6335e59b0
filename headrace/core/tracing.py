"""Traces: the seam through which parts tell what stages a request went through and when.

Values and protocols only; `obs.otel` implements them. Where tracing is off there is no span (None), so whoever has
nothing to tell pays for one comparison. Times are `Clock.now()` seconds; None means now.
Invariant: content never becomes an attribute; attributes are names, counts and times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from headrace.core.errors import HeadraceError

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]


class Span(Protocol):
    """A stage of one request that has begun."""

    @property
    def trace_id(self) -> str:
        """Return the trace's id as logs show it."""
        ...

    def begin(self, stage: str, began_s: float | None = None, *, model: str = "", calls_out: bool = False) -> Span:
        """Begin a stage within this one; one that asks `model` is named by it. `calls_out`: another server does it."""
        ...

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        ...

    def end(self, ended_s: float | None = None, *, error: str = "", is_error: bool = False) -> None:
        """End the stage, once. `error` is a code, not a message; `is_error`: it failed, and why is noted."""
        ...

    def headers(self) -> dict[str, str]:
        """Return the headers that make another server's spans this one's children."""
        ...


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, name: str, operation: str, headers: Mapping[str, str]) -> Span:
        """Begin the span of an HTTP request, in its caller's trace if `headers` name one.

        operation  what is asked of models, in OpenTelemetry's words: chat, text_completion
        """
        ...

    def close(self) -> None:
        """Send what has not been sent, within seconds. May block."""
        ...


_OFF: AbstractContextManager[None] = nullcontext()


def stage(span: Span | None, name: str) -> AbstractContextManager[Span | None]:
    """Make the body a stage within `span`; nothing where there is none."""
    return _OFF if span is None else _stage(span, name)


@contextmanager
def _stage(span: Span, name: str) -> Iterator[Span]:
    child, error = span.begin(name), ""
    try:
        yield child
    except BaseException as err:
        error = err.code if isinstance(err, HeadraceError) else type(err).__name__
        raise
    finally:
        child.end(error=error)
