"""What the endpoints need besides the request: one value, made by `app.serving` or a test.

Owns nothing itself; what changes in it belongs to the parts that it holds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from starlette.routing import BaseRoute

from headrace.api.calls import Calls
from headrace.api.ladder import Ladders
from headrace.api.recordings import Recordings
from headrace.api.served import Models
from headrace.api.shared_key import SharedKey
from headrace.core.audit import Auditor
from headrace.core.caller import Gatekeeper, NoteRefused, nobody_hears
from headrace.core.delta import Usage
from headrace.core.health import ServerHealth
from headrace.core.protocols import Clock
from headrace.core.request import RequestId
from headrace.core.swap import SwapReply
from headrace.core.tracing import Tracer
from headrace.core.upstream_status import UpstreamStatus
from headrace.obs import DoorMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """What the endpoints need besides the request.

    health    says how the server and its engines are getting on
    calls, recordings  what is being answered now
    render    Prometheus text and its content type
    admin     routes of the administration, where there is one
    gatekeeper  finds out who calls
    door      counts who was turned away there
    ladders   what callers get less of when there is not enough for all
    auditor   keeps what was asked and decided, where somebody does
    wall_s    Unix seconds, for `created` fields and the audit log only
    tracer    begins the traces of requests; None: they are not traced
    cors_origins  web origins whose pages may call
    swap      loads other weights for a name; None where no weights are served
    upstreams how the remote upstreams are doing
    note_refused  hears of each call for an answer that was turned away before any account of it was opened: who,
              which model as far as that is known, and why
    settled   says what a request of a key came to, if it has ended lately and accounts are kept
    """

    models: Models
    clock: Clock
    wall_s: Callable[[], float]
    health: Callable[[], ServerHealth]
    render: Callable[[], tuple[bytes, str]]
    version: str
    max_body_bytes: int
    admin: Sequence[BaseRoute] = ()
    gatekeeper: Gatekeeper = field(default_factory=lambda: SharedKey(None))
    ladders: Ladders = field(default_factory=Ladders)
    auditor: Auditor | None = None
    door: DoorMetrics = field(default_factory=DoorMetrics)
    calls: Calls = field(default_factory=Calls)
    recordings: Recordings = field(default_factory=Recordings)
    cors_origins: Sequence[str] = ()
    tracer: Tracer | None = None
    swap: Callable[[str, str, float | None], Awaitable[SwapReply]] | None = None
    upstreams: Callable[[], Sequence[UpstreamStatus]] = tuple
    note_refused: NoteRefused = nobody_hears
    settled: Callable[[str, RequestId], Usage | None] = lambda key_id, request_id: None
