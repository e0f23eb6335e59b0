"""How long a step takes, learned from the steps that have been made.

Owns: the sums of a least-squares fit, and how far its predictions were out. Called by the scheduler; predictions may be
asked from any thread, a coefficient that is one fit old does no harm.

    seconds = shared + per_row·rows + per_read·Σ context of rows + per_token·prompt tokens + per_pair·Σ their contexts

Rows compute one token each, prompt chunks several. No coefficient is negative. Errors count relative to the step, so
that short steps are as well predicted as long ones, and steps with and without chunks are forgotten at separate paces,
so that an hour of decoding does not wipe out what a chunk costs.
What a few prompts cost is asked sooner than the fit can tell (`kv.tiers` weighs loading against it): until then, and
where the fit cannot tell prompt tokens apart from the rest of a step, it is the mean of a prompt's token.
Source: roofline terms of a step; non-negative least squares by coordinate descent, Franc et al. 2005.
"""

from __future__ import annotations

from math import sqrt

import msgspec

from headrace.econ import StepCosts

_NUM_TERMS = 5
_DECAY = 0.98  # of what is known, per step of the same kind: a memory of about 50 of them
_FEW, _FIT_EVERY = 8, 16
_SWEEPS = 25
_LEAST_PROMPTS, _GUESS_S = 2, 1e-4  # steps with chunks, and seconds per token, until their mean says anything
_QUANTILE, _PACE = 0.9, 0.02  # of the ratio of measured to predicted


class StepShape(msgspec.Struct):
    """What a step computes, as far as its time depends on it. Filled in while the step is planned.

    num_rows    sequences that compute one token
    num_reads   tokens of context that these attend to
    num_tokens  tokens of prompt chunks
    num_pairs   pairs of a chunk's token and one before it
    """

    num_rows: int = 0
    num_reads: int = 0
    num_tokens: int = 0
    num_pairs: float = 0.0

    def add(self, start: int, count: int) -> None:
        """Count `count` tokens from position `start`: a row, or a chunk if there are several."""
        if count == 1:
            self.num_rows += 1
            self.num_reads += start
        else:
            self.num_tokens += count
            self.num_pairs += count * (start + count / 2)


class _Sums:
    """A's upper triangle and b of the normal equations A·x = b, with old steps fading."""

    __slots__ = ("count", "left", "right")

    def __init__(self) -> None:
        self.left = [[0.0] * _NUM_TERMS for _ in range(_NUM_TERMS)]
        self.right = [0.0] * _NUM_TERMS
        self.count = 0

    def add(self, terms: list[float]) -> None:
        self.count += 1
        for i, a in enumerate(terms):
            row = self.left[i]
            for j in range(i, _NUM_TERMS):
                row[j] = row[j] * _DECAY + a * terms[j]
            self.right[i] = self.right[i] * _DECAY + a


class StepModel:
    """Predicts steps. Cost: a few µs per observed step, a fit of about 0.1 ms each `_FIT_EVERY` steps.

    Implements `kv.tiers.RecomputeCost`.
    """

    def __init__(self) -> None:
        self._coefficients = [0.0] * _NUM_TERMS
        self._rows, self._chunks = _Sums(), _Sums()
        self._prompt_s = self._prompt_tokens = 0.0  # of steps with chunks, old ones fading
        self.overrun = 1.0  # nine steps of ten take at most this many times what was predicted

    @property
    def is_ready(self) -> bool:
        """Say whether steps without chunks can be predicted."""
        return self._rows.count >= _FEW

    @property
    def knows_chunks(self) -> bool:
        """Say whether steps with chunks can be predicted."""
        return self._chunks.count >= _FEW

    @property
    def token_s(self) -> float:
        """Return the seconds that one more prompt token takes, its attention left out."""
        return self._coefficients[3]

    @property
    def row_s(self) -> float:
        """Return the seconds that one more row takes, its attention left out."""
        return self._coefficients[1]

    @property
    def is_known(self) -> bool:
        """Say whether `recompute_s` is more than a guess."""
        return self._chunks.count >= _LEAST_PROMPTS

    def recompute_s(self, start: int, count: int) -> float:
        """Return the seconds that `count` prompt tokens from position `start` add to the steps that are made anyway."""
        _, _, _, token, pair = self._coefficients
        if token > 0.0 and self.knows_chunks:
            return token * count + pair * count * (start + 0.5 * count)
        return count * (self._prompt_s / self._prompt_tokens if self._prompt_tokens else _GUESS_S)

    def costs(self) -> StepCosts:
        """Return the coefficients in picoseconds, for dividing a step's time; guesses while nothing is known."""
        if not self.is_ready:
            return StepCosts()
        shared, row, read, token, pair = (round(seconds * 1e12) for seconds in self._coefficients)
        return StepCosts(
            shared=shared, per_decode_token=row, per_kv_token=read, per_prompt_token=token or row, per_pair=pair
        )

    def observe(self, shape: StepShape, elapsed_s: float) -> None:
        """Learn from a step that took `elapsed_s`."""
        if elapsed_s <= 0.0 or not (shape.num_rows or shape.num_tokens):
            return
        if predicted := self.predict(shape):
            ratio = elapsed_s / predicted
            self.overrun += _PACE * (_QUANTILE if ratio > self.overrun else _QUANTILE - 1.0)
        scale = 1.0 / elapsed_s
        sums = self._rows
        if shape.num_tokens:
            sums = self._chunks
            self._prompt_s = self._prompt_s * _DECAY + elapsed_s
            self._prompt_tokens = self._prompt_tokens * _DECAY + shape.num_tokens + shape.num_rows
        sums.add(
            [
                scale,
                shape.num_rows * scale,
                shape.num_reads * scale,
                shape.num_tokens * scale,
                shape.num_pairs * scale,
            ]
        )
        if sums.count <= _FEW or not (self._rows.count + self._chunks.count) % _FIT_EVERY:
            self._fit()

    def predict(self, shape: StepShape) -> float:
        """Return the seconds that a step is likely to take; 0 while nothing is known."""
        shared, row, read, token, pair = self._coefficients
        return (
            shared + row * shape.num_rows + read * shape.num_reads + token * shape.num_tokens + pair * shape.num_pairs
        )

    def chunk_within(self, limit_s: float, shape: StepShape, start: int) -> int:
        """Return how many prompt tokens from position `start` can be added before the step takes `limit_s`."""
        _, _, _, token, pair = self._coefficients
        slack = limit_s / max(self.overrun, 1.0) - self.predict(shape)
        linear = token + pair * start
        if slack <= 0.0 or linear + pair <= 0.0:
            return 0
        # pair/2·n² + linear·n = slack, in the form that does not divide by a small `pair`
        return int(2.0 * slack / (linear + sqrt(linear * linear + 2.0 * pair * slack)))

    def _fit(self) -> None:
        """Improve the coefficients, one after the other, none below zero."""
        rows, chunks = self._rows, self._chunks
        left = [[0.0] * _NUM_TERMS for _ in range(_NUM_TERMS)]
        for i in range(_NUM_TERMS):
            for j in range(i, _NUM_TERMS):
                left[i][j] = left[j][i] = rows.left[i][j] + chunks.left[i][j]
        right = [a + b for a, b in zip(rows.right, chunks.right, strict=True)]
        x = list(self._coefficients)
        for _ in range(_SWEEPS):
            for i in range(_NUM_TERMS):
                if left[i][i] > 0.0:
                    step = right[i] - sum(a * b for a, b in zip(left[i], x, strict=True))
                    x[i] = max(x[i] + step / left[i][i], 0.0)
        self._coefficients = x
