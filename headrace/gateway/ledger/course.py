"""How one request went, for its row in the ledger: where its time was, and what it looked like, without its content.

Owns nothing: a value, and the watch that its stage carries. Times are whole nanoseconds.
Invariant: admission + queue + prefill + decode + upstream + reading == the time from arrival to the end, exactly.

    an engine of ours    admission │ queue │ prefill │ decode, less pauses │ reading: what is left, and pauses
    a remote upstream    admission │ upstream, less the time that its reader took │ reading
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from headrace.core.protocols import Clock
from headrace.gateway.ledger.digests import NO_TRACES, Traces
from headrace.gateway.ledger.engine_account import Charge

_NS = 10**9


class Course(NamedTuple):
    """One request's course; the names are those of the columns.

    engine           of this process, that served it; None for a remote upstream, or if it never came so far
    prompt_ns        of the engine's time: for computing the prompt
    rent_ns          of the engine's time: for the memory of the cached tokens that it used; rent_nano: what that cost
    cached_nano      of what is charged: for cached input; output_nano: for output; the rest is for other input
    ttft_ns          from arrival to the first token or word
    most_output      tokens that all its answers might have had
    is_repeatable    whether the same request has the same answer: nothing was drawn at random
    request_digest   equal for equal requests; prefix_digests: of the first 64, 128, … tokens of the prompt, together
    """

    engine: str | None = None
    prompt_ns: int = 0
    cached_nano: int | None = None
    output_nano: int | None = None
    admission_ns: int | None = None
    queue_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    upstream_ns: int | None = None
    reading_ns: int | None = None
    ttft_ns: int | None = None
    num_preemptions: int = 0
    is_stream: int | None = None
    is_repeatable: int | None = None
    most_output: int | None = None
    request_digest: str | None = None
    prefix_digests: str | None = None
    rent_ns: int = 0
    rent_nano: int | None = None


UNKNOWN = Course()
_NOTHING_DONE = Charge(0, None)


class Stopwatch:
    """Notes when a request moves on. Owned by its stage."""

    __slots__ = ("_arrival_s", "_first_s", "_granted_s", "_handed_s", "_now", "_reading_s", "is_silent")

    def __init__(self, clock: Clock, arrival_s: float) -> None:
        self._now: Callable[[], float] = clock.now
        self._granted_s = begun_s = clock.now()
        self._arrival_s = arrival_s if 0.0 < arrival_s <= begun_s else begun_s
        self._first_s: float | None = None
        self.is_silent = True  # until it hands over words
        self._reading_s = 0.0
        self._handed_s = 0.0

    def grant(self) -> None:
        """Note that it may begin."""
        self._granted_s = self._now()

    def hand_over(self, *, has_words: bool) -> None:
        """Note that its reader gets something."""
        self._handed_s = now = self._now()
        if has_words and self.is_silent:
            self._first_s, self.is_silent = now, False

    def come_back(self) -> None:
        """Note that its reader wants more."""
        self._reading_s += self._now() - self._handed_s

    def course(
        self,
        charge: Charge | None,
        *,
        is_remote: bool,
        traces: Traces = NO_TRACES,
        cached_nano: int | None = None,
        output_nano: int | None = None,
    ) -> Course:
        """Sum up, now that it has ended. `charge` is what an engine of this process did for it."""
        arrival_ns, end_ns = round(self._arrival_s * _NS), round((end_s := self._now()) * _NS)
        end_ns = max(end_ns, arrival_ns)
        granted_ns = min(max(round(self._granted_s * _NS), arrival_ns), end_ns)
        queue_ns = prefill_ns = decode_ns = upstream_ns = 0
        if is_remote:
            reading_ns = min(round(self._reading_s * _NS), end_ns - granted_ns)
            upstream_ns = end_ns - granted_ns - reading_ns
            first_s = self._first_s
        else:
            marks = [granted_ns]
            for mark in self._local_ends(charge, end_s):  # one that was never passed is where the one before it is
                marks.append(min(max(round(mark * _NS), marks[-1]), end_ns))
            queue_ns, prefill_ns, decode_ns = (late - early for early, late in pairwise(marks))
            reading_ns = end_ns - marks[-1]
            if charge is not None:
                paused_ns = min(round(charge.paused_s * _NS), decode_ns)
                decode_ns, reading_ns = decode_ns - paused_ns, reading_ns + paused_ns
            first_s = self._first_s if charge is None else charge.first_token_s
        done = _NOTHING_DONE if charge is None else charge
        return Course(
            done.engine,
            done.prompt_ns,
            cached_nano,
            output_nano,
            granted_ns - arrival_ns,
            queue_ns,
            prefill_ns,
            decode_ns,
            upstream_ns,
            reading_ns,
            None if first_s is None else max(round(first_s * _NS) - arrival_ns, 0),
            done.num_preemptions,
            int(traces.is_stream),
            int(traces.is_repeatable),
            traces.most_output,
            traces.request_digest,
            traces.prefix_digests,
            done.rent_ns,
            done.rent_nano,
        )

    def _local_ends(self, charge: Charge | None, end_s: float) -> tuple[float, float, float]:
        """Return when waiting, computing the prompt and answering ended."""
        if charge is None or charge.first_scheduled_s is None:
            return (end_s,) * 3
        first_s = end_s if charge.first_token_s is None else charge.first_token_s
        if charge.finished_s is None:
            return charge.first_scheduled_s, first_s, end_s
        return charge.first_scheduled_s, min(first_s, charge.finished_s), charge.finished_s
