"""One HTTP call on its way through the API: what came with it, and what has been found out about it so far.

Owns these fields. Made by `api.access`, which fills in who calls; read by every endpoint. One plain object, because a
call asks for them some thirty times, and each walk over a list of headers or through a mapping would cost anew.
Invariant: of a header that came twice the first counts, for every reader alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

from starlette.types import ASGIApp, Receive, Scope

from headrace.api.calls import Call
from headrace.api.state import ApiState
from headrace.api.trail import Trail
from headrace.core.caller import Caller
from headrace.core.tracing import Span

_NOBODY = Caller()


class HeaderMap(Mapping[str, str]):
    """The headers of a call by their lower-case names. `raw` has them as they came."""

    __slots__ = ("raw",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self.raw: dict[bytes, bytes] = {}
        for name, value in pairs:
            if name not in self.raw:
                self.raw[name] = value

    def __getitem__(self, name: str) -> str:
        return self.raw[name.lower().encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self.raw)

    def __len__(self) -> int:
        return len(self.raw)


class Visit:
    """What is known of one call.

    headers  without those by which a caller names its own tenant
    span     of its trace; None: it is not traced
    trail    what the audit log will know of it; None: nobody keeps one
    call     what it has generated for it, once that has begun
    status   of the reply; 0 before it has begun
    """

    __slots__ = ("call", "caller", "headers", "method", "path", "receive", "request_id", "scope", "span", "state",
                 "status", "trail")  # fmt: skip

    def __init__(self, state: ApiState, scope: Scope, receive: Receive, headers: HeaderMap, request_id: str) -> None:
        self.state = state
        self.scope = scope
        self.receive = receive
        self.headers = headers
        self.request_id = request_id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.caller = _NOBODY
        self.span: Span | None = None
        self.trail: Trail | None = None
        self.call: Call | None = None
        self.status = 0

    def header(self, name: bytes) -> str | None:
        """Return a header by its lower-case name."""
        value = self.headers.raw.get(name)
        return None if value is None else value.decode("latin-1")

    def path_param(self, name: str) -> str:
        """Return what the path says for a `{name}` of its route."""
        value: str = self.scope["path_params"][name]
        return value


EndpointFunction = Callable[[Visit], Awaitable[ASGIApp]]
