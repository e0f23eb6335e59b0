"""Settings of service level objectives, and what they come to for one model.

Values only. `core.settings` reads them; `obs` counts by them, and `headrace dashboards` makes alerts of them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

_NAMES = ("ttft", "tpot", "e2e")
Milliseconds = Annotated[float, msgspec.Meta(gt=0)]


class Objectives(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer of one model has to keep, in seconds; None: no objective. That it must not fail always counts."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def named(self) -> tuple[tuple[str, float], ...]:
        """Return (name, seconds) of those that are set."""
        pairs = zip(_NAMES, (self.ttft_s, self.tpot_s, self.e2e_s), strict=True)
        return tuple((name, seconds) for name, seconds in pairs if seconds is not None)


class SloSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as a good answer. Each value becomes an edge of its histogram's buckets, so shares are exact.

    ttft_ms   milliseconds from arrival to the first token at most; None: no objective
    tpot_ms   milliseconds per token after the first at most, on average over the answer; None: no objective
    e2e_ms    milliseconds from arrival to the end at most; None: no objective
    target    share of answers that are to be good; burn-rate alerts defend it
    by_model  objectives of models that have others: 'ttft=500 tpot=80 e2e=-', in milliseconds, - for none
    """

    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    e2e_ms: Milliseconds | None = None
    target: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.99
    by_model: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuse, as the configuration is read, what `of` could not read."""
        for model in self.by_model:
            self.of(model)

    def of(self, model: str) -> Objectives:
        """Return the objectives of a model."""
        limits_ms = dict(zip(_NAMES, (self.ttft_ms, self.tpot_ms, self.e2e_ms), strict=True))
        for word in self.by_model.get(model, "").split():
            name, _, value = word.partition("=")
            limits_ms[name] = _read(model, word, name, value)
        return Objectives(**{f"{name}_s": None if ms is None else round(ms / 1e3, 9) for name, ms in limits_ms.items()})


def _read(model: str, word: str, name: str, value: str) -> float | None:
    if name in _NAMES and value == "-":
        return None
    try:
        limit_ms = float(value)
    except ValueError:
        limit_ms = 0.0
    if name not in _NAMES or not 0 < limit_ms < float("inf"):
        raise ValueError(f"slo.by_model of '{model}' says '{word}'; write ttft=500, tpot=80, e2e=9000 or e2e=-")
    return limit_ms
