"""Seconds that computing tokens takes on this machine, fitted to the steps that have been made.

    step seconds ≈ fixed + per_token · T + per_pair · A        T tokens of the step, A = Σ positions they attend to

Owns the sums of a weighted least-squares fit; older steps count less and less. Coefficients are never negative.
Written by the engine thread after steps that computed prompts; about two microseconds a step.
"""

from __future__ import annotations

from headrace.core.step import Step

_DECAY = 0.98
_LEAST_STEPS = 2
_GUESS_S = 1e-4  # per token, until steps have been seen


class PrefillCost:
    """Predicts what recomputing part of a sequence costs beside the steps that are made anyway."""

    __slots__ = ("_is_stale", "_moments", "_num_steps", "_per_pair", "_per_token", "_sums")

    def __init__(self) -> None:
        self._num_steps = 0
        self._moments = [0.0] * 6  # Σw·: 1, T, A, TT, TA, AA
        self._sums = [0.0] * 3  # Σw·: y, Ty, Ay
        self._per_token = self._per_pair = 0.0
        self._is_stale = False

    @property
    def is_known(self) -> bool:
        """Say whether enough steps were seen."""
        return self._num_steps >= _LEAST_STEPS

    def note(self, step: Step, elapsed_s: float) -> None:
        """Learn from a step, unless it only decoded, or only copied."""
        tokens = pairs = 0.0
        for row in step.rows:
            count = len(row.tokens)
            tokens += count
            pairs += count * (row.start + 0.5 * count)
        if not step.rows or tokens < 2 * len(step.rows):
            return
        moments, sums = self._moments, self._sums
        new = (1.0, tokens, pairs, tokens * tokens, tokens * pairs, pairs * pairs)
        for i, value in enumerate(new):
            moments[i] = _DECAY * moments[i] + value
        for i, value in enumerate((elapsed_s, tokens * elapsed_s, pairs * elapsed_s)):
            sums[i] = _DECAY * sums[i] + value
        self._num_steps += 1
        self._is_stale = True

    def recompute_s(self, start: int, count: int) -> float:
        """Return the seconds that `count` tokens from position `start` take; a guess while nothing is known."""
        if not self._num_steps:
            return _GUESS_S * count
        if self._is_stale:
            self._fit()
        return self._per_token * count + self._per_pair * count * (start + 0.5 * count)

    def _fit(self) -> None:
        """Solve for two coefficients around the means; fall back to the mean cost of a token."""
        self._is_stale = False
        one, t, a, tt, ta, aa = self._moments
        y, ty, ay = self._sums
        ctt, cta, caa = tt - t * t / one, ta - t * a / one, aa - a * a / one
        cty, cay = ty - t * y / one, ay - a * y / one
        determinant = ctt * caa - cta * cta
        per_token = per_pair = -1.0
        if determinant > 1e-6 * ctt * caa > 0:
            per_token = (cty * caa - cay * cta) / determinant
            per_pair = (cay * ctt - cty * cta) / determinant
        if per_token <= 0 or per_pair < 0:
            per_token, per_pair = (cty / ctt if ctt > 1e-6 * tt and cty > 0 else y / t), 0.0
        self._per_token, self._per_pair = per_token, per_pair
