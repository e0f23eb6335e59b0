"""What a server says about its health: states told from steps and tokens, never from an open socket.

Values only. Made by `engine.health` and `app.status`, read by `api.health`, `obs` and the watchdog.

    starting ──► ready ◄──► degraded        degraded: work goes on, without a request or a place for KV
                   ▲  │                     stalled:  there is work, and no step ends
                   │  └──► stalled ──► dead
                   └─────────┘              draining: asked to stop; dead: stopped for good, the process exits with 1
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from headrace.core.request import SeqId


class HealthState(StrEnum):
    """How a model, or the whole server, is getting on. Declared from best to worst."""

    READY = "ready"
    DEGRADED = "degraded"
    STARTING = "starting"
    DRAINING = "draining"
    STALLED = "stalled"
    DEAD = "dead"

    @property
    def takes_requests(self) -> bool:
        """Say whether a load balancer should send requests here."""
        return self in (HealthState.READY, HealthState.DEGRADED)


class SequencePhase(StrEnum):
    """Where a live sequence is."""

    INBOX = "inbox"  # handed in, not yet taken by the engine thread
    QUEUE = "queue"  # waiting for its first step
    PREEMPTED = "preempted"  # gave its blocks back and waits to go on
    PREFILL = "prefill"
    DECODE = "decode"
    PAUSED = "paused"  # its reader is slow; it goes on when that has caught up


class LiveSequence(msgspec.Struct, frozen=True, gc=False):
    """How far one live sequence is; `mark` changes whenever something was computed for it.

    queued_s  when it came into the queue; None before that
    """

    seq_id: SeqId
    phase: SequencePhase
    mark: tuple[int, int]
    queued_s: float | None = None


class StuckRequest(msgspec.Struct, frozen=True):
    """A live request for which nothing has been computed for `idle_s` seconds."""

    request_id: str
    phase: SequencePhase
    idle_s: float


class DownPlace(msgspec.Struct, frozen=True):
    """A place for KV blocks that is done without: it failed, is full, or hangs, for `silent_s` seconds."""

    name: str
    silent_s: float = 0.0
    is_full: bool = False


class ModelHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One engine at one moment. Ages in seconds; None where there is nothing to have an age.

    steps, tokens   counters that grow while work is done
    step_age_s      how long the step in flight has been running
    engine_phase    what the engine thread is doing: idle, warm, schedule, execute, commit
    stuck           requests without progress, longest first, the first few of `num_stuck`
    places_down     places below the pool that are done without
    """

    state: HealthState
    reason: str | None = None
    steps: int = 0
    tokens: int = 0
    running: int = 0
    waiting: int = 0
    last_step_age_s: float | None = None
    step_age_s: float | None = None
    engine_phase: str = "idle"
    oldest_waiting_s: float | None = None
    num_stuck: int = 0
    stuck: tuple[StuckRequest, ...] = ()
    places_down: tuple[DownPlace, ...] = ()


class StartProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a start is. `done` is the share of the phase, 0 to 1, where it is known."""

    phase: str
    model: str | None = None
    done: float | None = None
    models_ready: int = 0
    models: int = 0
    elapsed_s: float = 0.0


class ServerHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole server: the worst of its models' states, unless it starts, drains or dies itself."""

    state: HealthState
    reason: str | None = None
    start: StartProgress | None = None
    models: dict[str, ModelHealth] = {}
