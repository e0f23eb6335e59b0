"""A pool that tells what happens to its requests, in the words engines use, so that one dashboard shows both.

Owns the counts of one public model. Called on the network thread.
Invariant: each request that got a first delta is told once to `on_finished`, each other one to `on_refused`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import HeadraceError
from headrace.core.protocols import Clock, Upstream
from headrace.core.request import Request
from headrace.core.stats import EngineSnapshot, Observer, RequestStats


class ObservedUpstream:
    """Passes requests to `inner` and tells `observer`. Implements `core.protocols.Upstream`."""

    def __init__(self, inner: Upstream, observer: Observer, clock: Clock) -> None:
        self._inner = inner
        self._observer = observer
        self._clock = clock
        self._num_running = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Stream the answer."""
        life = _Life(request, self._observer, self._clock)
        deltas = self._inner.generate(request)
        self._num_running += 1
        try:
            async for delta in deltas:
                life.see(delta)
                yield delta
        except HeadraceError as error:
            if life.first_s is None:
                self._observer.on_refused(error)
            raise
        finally:
            self._num_running -= 1
            if isinstance(deltas, AsyncGenerator):
                await deltas.aclose()
            if life.first_s is not None:
                stats = life.stats()
                self._prompt_tokens += stats.prompt_tokens - stats.cached_tokens
                self._generated_tokens += stats.completion_tokens
                self._observer.on_finished(stats)

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


class _Life:
    """One request's times and endings."""

    def __init__(self, request: Request, observer: Observer, clock: Clock) -> None:
        self._request = request
        self._observer = observer
        self._clock = clock
        self._last_s: dict[int, float] = {}
        self._finishes: dict[int, FinishReason] = {}
        self._usage = Usage(prompt_tokens=0, completion_tokens=0)
        self.first_s: float | None = None

    def see(self, delta: Delta) -> None:
        """Note a delta."""
        now = self._clock.now()
        if self.first_s is None:
            self.first_s = now
            self._observer.on_first_token(now - self._request.arrival_s)
        elif delta.has_words and delta.index in self._last_s:
            self._observer.on_next_token(now - self._last_s[delta.index])
        if delta.has_words:
            self._last_s[delta.index] = now
        if delta.finish is not None:
            self._finishes[delta.index] = delta.finish
        self._usage = delta.usage or self._usage

    def stats(self) -> RequestStats:
        """Sum the request up; choices without an ending were given up by their reader."""
        finishes = tuple(self._finishes.get(index, FinishReason.ABORT) for index in range(self._request.n))
        return RequestStats(
            request_id=self._request.request_id,
            model=self._request.model,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            cached_tokens=self._usage.cached_tokens,
            finishes=finishes,
            arrival_s=self._request.arrival_s,
            first_scheduled_s=None,
            first_token_s=self.first_s,
            finished_s=self._clock.now(),
            num_preemptions=0,
            tenant=self._request.tenant,
        )
