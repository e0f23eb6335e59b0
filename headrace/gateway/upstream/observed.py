"""What a pool tells of its requests, in the words engines use, so that one dashboard shows both.

Owns the counts of one public model. Called by its `Pool`, on the network thread.
Invariant: each request that got a first delta is told once to `on_finished`, each other one to `on_refused`.
"""

from __future__ import annotations

from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import HeadraceError
from headrace.core.protocols import Clock
from headrace.core.request import Request
from headrace.core.stats import EngineSnapshot, Observer, RequestStats


class Observed:
    """The requests of one public model, told to `observer`."""

    def __init__(self, observer: Observer, clock: Clock) -> None:
        self._observer = observer
        self._clock = clock
        self._num_running = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def begin(self, request: Request) -> Life:
        """Note a request that begins; `Life.end` has to follow."""
        self._num_running += 1
        return Life(self, request, self._observer, self._clock)

    def snapshot(self) -> EngineSnapshot:
        """Return the counts in an engine's shape; a remote upstream has no blocks and no steps here."""
        return EngineSnapshot(
            num_running=self._num_running,
            num_waiting=0,
            num_blocks=1,
            num_free_blocks=1,
            num_steps=0,
            num_preemptions=0,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            recomputed_tokens=0,
            last_step_s=None,
            is_dead=False,
        )

    def _end(self, stats: RequestStats | None) -> None:
        self._num_running -= 1
        if stats is not None:
            self._prompt_tokens += stats.prompt_tokens - stats.cached_tokens
            self._generated_tokens += stats.completion_tokens
            self._observer.on_finished(stats)


class Life:
    """One request's times and endings."""

    def __init__(self, observed: Observed, request: Request, observer: Observer, clock: Clock) -> None:
        self._observed = observed
        self._request = request
        self._observer = observer
        self._clock = clock
        self._first_s: float | None = None
        self._last_s: dict[int, float] = {}
        self._finishes: dict[int, FinishReason] = {}
        self._usage: Usage | None = None

    def see(self, delta: Delta) -> None:
        """Note a delta."""
        now = self._clock.now()
        if self._first_s is None:
            self._first_s = now
            self._observer.on_first_token(now - self._request.arrival_s)
        if delta.text or delta.has_words:
            last_s = self._last_s.get(delta.index)
            self._last_s[delta.index] = now
            if last_s is not None:
                self._observer.on_next_token(now - last_s)
        if delta.finish is not None:
            self._finishes[delta.index] = delta.finish
        if delta.usage is not None:
            self._usage = delta.usage

    def refuse(self, error: HeadraceError) -> None:
        """Note why no upstream answers it."""
        if self._first_s is None:
            self._observer.on_refused(error)

    def end(self) -> None:
        """Sum the request up; choices without an ending were given up by their reader."""
        self._observed._end(None if self._first_s is None else self._stats(self._first_s))

    def _stats(self, first_s: float) -> RequestStats:
        request, usage = self._request, self._usage
        return RequestStats(
            request_id=request.request_id,
            model=request.model,
            prompt_tokens=0 if usage is None else usage.prompt_tokens,
            completion_tokens=0 if usage is None else usage.completion_tokens,
            cached_tokens=0 if usage is None else usage.cached_tokens,
            finishes=tuple([self._finishes.get(index, FinishReason.ABORT) for index in range(request.n)]),
            arrival_s=request.arrival_s,
            first_scheduled_s=None,
            first_token_s=first_s,
            finished_s=self._clock.now(),
            num_preemptions=0,
            tenant=request.tenant,
        )
