"""How long a step takes, predicted: five coefficients and the shape of the step.

    seconds = shared + per_row·rows + per_read·their contexts + per_token·prompt tokens + per_pair·their contexts

Values only. Known sets ship in `step_times.toml`, each with where it comes from; others are read from a file that a
person gives, or fitted to the steps of a decision log (`fit`).
Source: the terms of a roofline; non-negative least squares by coordinate descent, errors relative to the step.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from headrace.core.errors import ConfigError
from headrace.core.step import Row, Step

_SWEEPS = 400
_LEAST_STEPS = 8


class StepTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that the parts of a step cost.

    shared     whoever is there
    per_row    a sequence that computes one token
    per_read   a token of context that such a row attends to
    per_token  a token of a prompt chunk
    per_pair   a token of a chunk attending to one before it
    on_device  a GPU takes the steps, not the cores that plan: the engine cuts and plans them accordingly
    source     where the numbers come from
    """

    shared: float
    per_row: float
    per_read: float = 0.0
    per_token: float
    per_pair: float = 0.0
    on_device: bool = False
    source: str = ""

    def check(self) -> None:
        """Raise ConfigError for a coefficient that no step can have."""
        for name in ("shared", "per_row", "per_read", "per_token", "per_pair"):
            value = getattr(self, name)
            if not 0 <= value < 1e3:
                raise ConfigError(f"step times: {name} is {value} s; it must be at least 0 and below 1000")
        if self.shared + self.per_row <= 0 or self.shared + self.per_token <= 0:
            raise ConfigError("step times: a step must take time; set shared, or per_row and per_token, above 0")

    def predict(self, step: Step) -> float:
        """Return the seconds that a step takes."""
        rows, reads, tokens, pairs = step_terms((_num_seen(row), len(row.tokens)) for row in step.rows)
        return (
            self.shared + self.per_row * rows + self.per_read * reads + self.per_token * tokens + self.per_pair * pairs
        )


def _num_seen(row: Row) -> int:
    return row.start if row.reach is None else min(row.start, row.reach.num_seen)


def step_terms(members: Iterable[tuple[int, int]]) -> tuple[int, int, int, float]:
    """Sum rows, reads, prompt tokens and pairs over (start, count) of a step's members."""
    rows = reads = tokens = 0
    pairs = 0.0
    for start, count in members:
        if count == 1:
            rows += 1
            reads += start
        else:
            tokens += count
            pairs += count * (start + count / 2)
    return rows, reads, tokens, pairs


def fit(
    observed: Sequence[tuple[tuple[int, int, int, float], float]], source: str, *, on_device: bool = False
) -> StepTimes:
    """Fit coefficients to (terms, seconds) of measured steps. Raises ConfigError if there are too few."""
    steps = [(terms, elapsed_s) for terms, elapsed_s in observed if elapsed_s > 0.0]
    if len(steps) < _LEAST_STEPS:
        raise ConfigError(f"{source} has {len(steps)} measured steps; at least {_LEAST_STEPS} are needed for a fit")
    scales = [max(terms[i] for terms, _ in steps) or 1.0 for i in range(4)]
    left = [[0.0] * 5 for _ in range(5)]
    right = [0.0] * 5
    for terms, elapsed_s in steps:
        row = [1.0 / elapsed_s, *(value / scale / elapsed_s for value, scale in zip(terms, scales, strict=True))]
        for i in range(5):
            right[i] += row[i]
            for j in range(5):
                left[i][j] += row[i] * row[j]
    x = [0.0] * 5
    for _ in range(_SWEEPS):
        for i in range(5):
            if left[i][i] > 0.0:
                gap = right[i] - sum(a * b for a, b in zip(left[i], x, strict=True))
                x[i] = max(x[i] + gap / left[i][i], 0.0)
    row_s, read_s, token_s, pair_s = (value / scale for value, scale in zip(x[1:], scales, strict=True))
    return StepTimes(
        shared=x[0],
        per_row=row_s,
        per_read=read_s,
        per_token=token_s,
        per_pair=pair_s,
        on_device=on_device,
        source=source,
    )


def known_step_times() -> dict[str, StepTimes]:
    """Return the sets that ship with the package, by name."""
    text = (files("headrace.sim") / "step_times.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, StepTimes])


def read_step_times(name_or_path: str) -> StepTimes:
    """Return a known set by its name, or the one in a JSON file. Raises ConfigError."""
    known = known_step_times()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    try:
        times = msgspec.json.decode(path.read_bytes(), type=StepTimes)
    except OSError as err:
        names = ", ".join(f"'{name}'" for name in known)
        raise ConfigError(f"step times '{name_or_path}' are neither known ({names}) nor a file: {err}") from err
    except msgspec.MsgspecError as err:
        raise ConfigError(f"step times in {path}: {err}; expected shared, per_row, per_token, …, in seconds") from err
    times.check()
    return times
