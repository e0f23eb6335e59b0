"""Is an engine getting on? Judged from steps and tokens while there is work, never from a thread being alive.

Owns: since when each live sequence has stood still. Time comes from the clock; a judge that nobody asks costs nothing.
Rules, for work that is there:
- warm-up has not ended for `warm_up_s`: stalled, and dead a little later; the little is for a process that was frozen;
- no step has ended for `stall_s` (or 20 times the warm-up, for machines on which a step is slow): stalled;
- seen so, and still so `exit_s` later: dead, and dead it stays;
- steps end, but nothing was computed for some request for `stuck_s`: degraded, and the request is named;
- a place for KV blocks fails, is full or hangs: degraded, and the place is named.
Asked by the watchdog and the health endpoints, under one lock (`app.watchdog`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace.core.health import DownPlace, HealthState, LiveSequence, ModelHealth, SequencePhase, StuckRequest
from headrace.core.protocols import Clock
from headrace.core.request import RequestId, SeqId
from headrace.core.stats import EngineSnapshot

_WARM_FACTOR = 20.0  # a full step computes 16 times the tokens of warm-up's largest
_MOST_NAMED = 16
_LAST_CHANCE_S = 5.0  # between the first look that finds a warm-up late and its end
_WAITING = (SequencePhase.INBOX, SequencePhase.QUEUE, SequencePhase.PREEMPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """Seconds without progress that are too many: of the engine, of one request, until the end; and of a warm-up."""

    stall_s: float = 60.0
    stuck_s: float = 120.0
    exit_s: float = 240.0
    warm_up_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a judge looks at.

    warm_s      how long warm-up took; None before it has ended
    fatal       why the engine has stopped for good, if it has
    """

    snapshot: EngineSnapshot
    live: list[LiveSequence]
    request_id: Callable[[SeqId], RequestId | None]
    warm_s: float | None
    is_draining: bool = False
    fatal: str | None = None


class HealthJudge:
    """Judges one engine. Not for two threads at once."""

    def __init__(self, limits: HealthLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._work_since_s: float | None = None
        self._seen: dict[SeqId, tuple[tuple[int, int], float]] = {}  # mark, and since when
        self._stalled_since_s: float | None = None  # seen so: a process that was frozen itself gets another look
        self._warming_since_s: float | None = None
        self._late_since_s: float | None = None  # its warm-up was first seen to be
        self._verdict: str | None = None  # why it was judged dead

    def judge(self, facts: EngineFacts) -> ModelHealth:
        """Compare with the last look and return how the engine is."""
        now, snapshot = self._clock.now(), facts.snapshot
        idle_s = self._note_work(facts, now)
        since = self._note_sequences(facts.live, now)
        state, reason = self._state(facts, idle_s)
        down = [tier for tier in snapshot.tiers if not tier.is_up]
        places = tuple(DownPlace(tier.name, round(tier.silent_s, 3), tier.is_full) for tier in down)
        if state is HealthState.READY:
            limit_s = max(self._limits.stuck_s, self._stall_s(facts))
            stuck = [s for s in facts.live if now - since[s.seq_id] >= limit_s]
            if stuck:
                state = HealthState.DEGRADED
                reason = f"nothing was computed in {limit_s:g} s for {len(stuck)} of {len(facts.live)} sequences"
            elif places:
                state, reason = HealthState.DEGRADED, _without(places)
        else:
            stuck = facts.live if state is HealthState.STALLED or self._verdict else []
        waits = [now - since[s.seq_id] for s in facts.live if s.phase in _WAITING]
        return ModelHealth(
            state=state,
            reason=reason,
            steps=snapshot.num_steps,
            tokens=snapshot.prompt_tokens + snapshot.recomputed_tokens + snapshot.generated_tokens,
            running=snapshot.num_running,
            waiting=snapshot.num_waiting,
            last_step_age_s=None if snapshot.last_step_s is None else now - snapshot.last_step_s,
            step_age_s=None if snapshot.step_began_s is None else now - snapshot.step_began_s,
            engine_phase=snapshot.phase,
            oldest_waiting_s=max(waits, default=None),
            num_stuck=len({facts.request_id(s.seq_id) for s in stuck}),
            stuck=_name(stuck, facts.request_id, since, now),
            places_down=places,
        )

    def _note_work(self, facts: EngineFacts, now: float) -> float:
        """Return the seconds for which there was work and no step ended; 0 without work."""
        if facts.snapshot.step_began_s is None and all(s.phase is SequencePhase.PAUSED for s in facts.live):
            self._work_since_s = None
            return 0.0
        if self._work_since_s is None:
            self._work_since_s = now
        return now - max(self._work_since_s, facts.snapshot.last_step_s or 0.0)

    def _note_sequences(self, live: Iterable[LiveSequence], now: float) -> dict[SeqId, float]:
        """Return since when each live sequence has stood still, and forget the others."""
        seen: dict[SeqId, tuple[tuple[int, int], float]] = {}
        for sequence in live:
            mark, since_s = self._seen.get(sequence.seq_id, (None, now))
            if mark != sequence.mark or sequence.phase is SequencePhase.PAUSED:
                since_s = now
            if sequence.phase is SequencePhase.QUEUE and sequence.queued_s is not None:
                since_s = min(since_s, sequence.queued_s)
            seen[sequence.seq_id] = (sequence.mark, since_s)
        self._seen = seen
        return {seq_id: since_s for seq_id, (_, since_s) in seen.items()}

    def _state(self, facts: EngineFacts, idle_s: float) -> tuple[HealthState, str | None]:
        fatal = facts.fatal or self._verdict
        if fatal is not None:
            return HealthState.DEAD, fatal
        if facts.warm_s is None:
            return self._starting(facts)
        if idle_s >= self._stall_s(facts):
            now = self._clock.now()
            self._stalled_since_s = now if self._stalled_since_s is None else self._stalled_since_s
            where = f"the engine thread is in '{facts.snapshot.phase}' of step {facts.snapshot.num_steps - 1}"
            reason = f"no step has ended for {idle_s:.1f} s while there is work; {where}"
            if now - self._stalled_since_s < self._limits.exit_s:
                return HealthState.STALLED, reason
            self._verdict = reason
            return HealthState.DEAD, reason
        self._stalled_since_s = None
        if facts.is_draining:
            return HealthState.DRAINING, "the server was asked to stop"
        return HealthState.READY, None

    def _starting(self, facts: EngineFacts) -> tuple[HealthState, str | None]:
        """Judge an engine that has not served yet."""
        now, limit_s = self._clock.now(), self._limits.warm_up_s
        if facts.snapshot.phase != "warm":
            self._warming_since_s = None
            return HealthState.STARTING, None
        self._warming_since_s = now if self._warming_since_s is None else self._warming_since_s
        if now - self._warming_since_s < limit_s:
            return HealthState.STARTING, None
        self._late_since_s = now if self._late_since_s is None else self._late_since_s
        reason = (
            f"the three small steps of its warm-up have not ended for {now - self._warming_since_s:.1f} s, the limit "
            f"is {limit_s:g}; the weights' disk or a driver hangs, or the model is too large for this machine: look "
            "there, serve a smaller model, or raise health.warm_up_s"
        )
        if now - self._late_since_s < min(_LAST_CHANCE_S, limit_s):
            return HealthState.STALLED, reason
        self._verdict = reason
        return HealthState.DEAD, reason

    def _stall_s(self, facts: EngineFacts) -> float:
        return max(self._limits.stall_s, _WARM_FACTOR * (facts.warm_s or 0.0))


def _without(places: tuple[DownPlace, ...]) -> str:
    """Say which places are done without, and why."""
    return f"{'; '.join(map(_down, places))}; serving goes on"


def _down(place: DownPlace) -> str:
    if place.silent_s:
        return f"KV tier '{place.name}' has not answered for {place.silent_s:.1f} s"
    return f"KV tier '{place.name}' " + ("is full" if place.is_full else "fails and is left alone for a while")


def _name(
    stuck: list[LiveSequence],
    request_id: Callable[[SeqId], RequestId | None],
    since: dict[SeqId, float],
    now: float,
) -> tuple[StuckRequest, ...]:
    """Name the requests of stuck sequences, each once, longest first."""
    found: dict[str, StuckRequest] = {}
    for sequence in sorted(stuck, key=lambda s: since[s.seq_id]):
        name = request_id(sequence.seq_id)
        if name is not None and name not in found:
            found[name] = StuckRequest(name, sequence.phase, round(now - since[sequence.seq_id], 3))
        if len(found) == _MOST_NAMED:
            break
    return tuple(found.values())
