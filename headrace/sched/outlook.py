"""When a request's first token would come: from what runs, what waits before it, and how long steps take.

Owns: how far earlier predictions were out, and how much of a prompt has to be computed as a rule. Written by the
scheduler on the engine thread; `ttft_s` may be asked from any thread: it looks at copies, and what is one step old
there does no harm.

A fluid picture. Places become free as running answers end, the shortest first, and those that take them last as long
as answers do. Until its place is free steps of the present size go on; the prompts before it and its own are spread
over these steps, or make more of them if there are too many. What is left out of the picture is learned as a factor.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import NamedTuple

from headrace.sched.budget import StepBudget
from headrace.sched.forecast import OutputForecast
from headrace.sched.limits import SchedulerLimits
from headrace.sched.sequence import Sequence
from headrace.sched.step_model import StepModel, StepShape

_PACE = 0.1  # of what is learned of prompts, per first token
# What predictions are out by is a least-squares slope: long waits say much, short ones more about the step they fell
# into. It takes a few waits of seconds to move it; what comes out now was predicted one wait ago, and whoever follows
# that quickly swings to and fro.
_FADE, _PRIOR, _MOST_CORRECTION = 0.98, 20.0, 4.0


class Ahead(NamedTuple):
    """What waits before a request: sequences and their prompt tokens."""

    num_sequences: int
    num_tokens: int


class Outlook:
    """Predicts times to first token."""

    def __init__(self, limits: SchedulerLimits, model: StepModel, budget: StepBudget, forecast: OutputForecast) -> None:
        self._limits = limits
        self._model = model
        self._budget = budget
        self._forecast = forecast
        self._squares = self._products = 0.0  # of predicted seconds, and of these and what it took
        self._cold_share = 1.0  # of prompt tokens: those not found in the prefix cache

    def ttft_s(self, prompt_len: int, ahead: Ahead, running: Items[Sequence], *, is_full: bool) -> float | None:
        """Return the seconds to the first token of a request that comes now, uncorrected; None while steps are unknown.

        is_full  the last one that wanted to enter found no memory
        """
        model = self._model
        if not (model.is_ready and model.knows_chunks):
            return None
        num_running = len(running)
        lengths = [len(sequence.tokens) - sequence.num_computed for sequence in running]
        shape = StepShape(num_rows=num_running, num_reads=sum(sequence.num_computed for sequence in running))
        num_places = num_running if is_full and running else self._limits.max_num_seqs
        steps = self._steps_until_free(ahead.num_sequences + 1 - (num_places - num_running), running)
        num_tokens = sum(length for length in lengths if length > 1)
        num_tokens += int(self._cold_share * (ahead.num_tokens + prompt_len)) + 1
        shared_s = model.predict(shape)
        room = max(self._limits.max_step_tokens - num_running, 1)
        steps = max(steps, -(-num_tokens // max(self._budget.chunk_room(shape, room, 0), 1)))
        # Prompts attend to themselves: on average to half of one.
        shape.num_tokens, shape.num_pairs = num_tokens, num_tokens * prompt_len / 2
        return shared_s * (steps - 1) + model.predict(shape)

    def corrected_s(self, predicted_s: float) -> float:
        """Return a prediction times what predictions have lately been out by."""
        return predicted_s * (self._products + _PRIOR) / (self._squares + _PRIOR)

    def note_first_token(self, sequence: Sequence, now: float) -> None:
        """Learn from a first token: how long it took, and how much of the prompt was computed."""
        self._cold_share += _PACE * (1.0 - sequence.num_cached / sequence.prompt_len - self._cold_share)
        predicted_s, took_s = sequence.predicted_s, now - sequence.queued_s
        if predicted_s is not None and not sequence.is_background:
            took_s = min(took_s, _MOST_CORRECTION * predicted_s)
            self._squares = self._squares * _FADE + predicted_s * predicted_s
            self._products = self._products * _FADE + predicted_s * took_s

    def _steps_until_free(self, num_wanted: int, running: Items[Sequence]) -> int:
        """Return in how many steps `num_wanted` running answers, and those that follow them, will have ended."""
        if num_wanted <= 0 or not running:
            return 1
        ratio = self._forecast.ratio
        full = [ratio * (sequence.max_len - sequence.prompt_len) for sequence in running]
        left = sorted(max(each - s.num_output, 1.0) for each, s in zip(full, running, strict=True))
        rounds, index = divmod(num_wanted - 1, len(left))
        return int(rounds * sum(full) / len(full) + left[index]) + 1
