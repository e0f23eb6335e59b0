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


class Stopwatch:
    """Notes when a request moves on. Owned by its stage."""

    def __init__(self, clock: Clock, arrival_s: float) -> None:
        self._now: Callable[[], float] = clock.now
        begun_s = clock.now()
        self._arrival_s = arrival_s if 0.0 < arrival_s <= begun_s else begun_s
        self._granted_s = begun_s
        self._first_s: float | None = None
        self._reading_s = 0.0
        self._handed_s = 0.0

    def grant(self) -> None:
        """Note that it may begin."""
        self._granted_s = self._now()

    def hand_over(self, *, has_words: bool) -> None:
        """Note that its reader gets something."""
        self._handed_s = now = self._now()
        if has_words and self._first_s is None:
            self._first_s = now

    def come_back(self) -> None:
        """Note that its reader wants more."""
        self._reading_s += self._now() - self._handed_s

    def course(self, charge: Charge | None, *, is_remote: bool, traces: Traces = NO_TRACES) -> Course:
        """Sum up, now that it has ended. `charge` is what an engine of this process did for it."""
        end_s = self._now()
        ends_s = self._local_ends(charge, end_s) if not is_remote else (end_s,) * 3
        marks = [round(mark * _NS) for mark in (self._arrival_s, self._granted_s, *ends_s, end_s)]
        for place in range(1, len(marks)):  # a mark that was never passed is where the one before it is
            marks[place] = min(max(marks[place], marks[place - 1]), max(marks[-1], marks[0]))
        admission_ns, queue_ns, prefill_ns, decode_ns, reading_ns = (late - early for early, late in pairwise(marks))
        upstream_ns = 0
        if is_remote:
            upstream_ns, queue_ns = queue_ns, 0
            reading_ns = min(round(self._reading_s * _NS), upstream_ns)
            upstream_ns -= reading_ns
        elif charge is not None:
            paused_ns = min(round(charge.paused_s * _NS), decode_ns)
            decode_ns, reading_ns = decode_ns - paused_ns, reading_ns + paused_ns
        first_s = self._first_s if is_remote or charge is None else charge.first_token_s
        return Course(
            engine=None if charge is None else charge.engine,
            prompt_ns=0 if charge is None else charge.prompt_ns,
            admission_ns=admission_ns,
            queue_ns=queue_ns,
            prefill_ns=prefill_ns,
            decode_ns=decode_ns,
            upstream_ns=upstream_ns,
            reading_ns=reading_ns,
            ttft_ns=None if first_s is None else max(round(first_s * _NS) - marks[0], 0),
            num_preemptions=0 if charge is None else charge.num_preemptions,
            is_stream=int(traces.is_stream),
            is_repeatable=int(traces.is_repeatable),
            most_output=traces.most_output,
            request_digest=traces.request_digest,
            prefix_digests=traces.prefix_digests,
            rent_ns=0 if charge is None else charge.rent_ns,
            rent_nano=None if charge is None else charge.rent_nano,
        )

    def _local_ends(self, charge: Charge | None, end_s: float) -> tuple[float, float, float]:
        """Return when waiting, computing the prompt and answering ended."""
        if charge is None or charge.first_scheduled_s is None:
            return (end_s,) * 3
        first_s = end_s if charge.first_token_s is None else charge.first_token_s
        if charge.finished_s is None:
            return charge.first_scheduled_s, first_s, end_s
        return charge.first_scheduled_s, min(first_s, charge.finished_s), charge.finished_s
