"""Graceful degradation: what is tried, in which order, when a model has no room for a request.

Owns the steps of each model, which callers were last told of an exceeded soft budget, and the counts of what was done.

    asked ─► as asked ──► answered
               │ refused for want of room · first token too far off · soft budget exceeded
               └─► step 1 ─► step 2 ─► …  the first that answers; if none does: the refusal, or as asked after all

Invariant: nothing is degraded once the first byte of an answer is out, nor for a caller that has said never; what was
done is in the header `x-headrace-degraded`, in the audit log and in a counter, each time.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from headrace.api.answer_cache import AnswerCache
from headrace.core.caller import Caller
from headrace.core.clock import MonotonicClock
from headrace.core.degrade_settings import DegradeSettings
from headrace.core.errors import ConfigError, InvalidRequest
from headrace.core.protocols import Clock
from headrace.core.request import PRIORITIES

Reason = Literal["overload", "ttft", "budget"]
HEADER = "x-headrace-degraded"
WISH = "x-headrace-degrade"
WARNING = "x-headrace-budget-warning"
_FORMS = "shed:PRIORITY, cache, shorter:TOKENS or model:NAME"
_WARNED_S = 60.0
_MOST_WARNED = 10_000


class Step(NamedTuple):
    """One way to give less."""

    kind: Literal["shed", "cache", "shorter", "model"]
    number: int = 0
    model: str = ""

    @property
    def spelled(self) -> str:
        """Return the step as it is configured."""
        return ":".join([self.kind, *([str(self.number)] if self.number or self.kind == "shed" else []), *self._name])

    @property
    def _name(self) -> list[str]:
        return [self.model] if self.model else []


class Plan(NamedTuple):
    """How a call is to be answered. No step: as asked. `most_ttft_s` None: however long it takes."""

    step: Step | None = None
    reason: Reason = "overload"
    most_ttft_s: float | None = None

    @property
    def told(self) -> str:
        """Say what the caller gets less of; empty: nothing."""
        return "" if self.step is None else f"{self.step.spelled}; reason={self.reason}"


AS_ASKED = Plan()


class Ladders:
    """The steps of all models. Raises ConfigError for steps that are none."""

    def __init__(self, settings: DegradeSettings | None = None, clock: Clock | None = None) -> None:
        settings = settings or DegradeSettings()
        self._clock = clock or MonotonicClock()
        self._steps = {model: _parse(model, text) for model, text in settings.steps.items()}
        self._warned: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._minds_budgets = settings.soft_budget
        self.most_ttft_s = None if settings.over_ttft_ms is None else settings.over_ttft_ms / 1e3
        self.answers = AnswerCache(self._clock, settings.cache_mib << 20, settings.cache_s)
        self.counts: dict[tuple[str, str, str], int] = {}

    @property
    def is_empty(self) -> bool:
        """Say whether nothing is ever degraded."""
        return not self._steps

    def check(self, served: Sequence[str]) -> None:
        """Raise ConfigError if a model of the steps is not served, with the nearest that is."""
        named = [*self._steps, *(step.model for steps in self._steps.values() for step in steps if step.model)]
        for model in named:
            if model not in served:
                near = difflib.get_close_matches(model, served, n=1, cutoff=0.0)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise ConfigError(f"degrade.steps: model '{model}' is not served{hint}", param="degrade.steps")

    def of(self, model: str) -> tuple[Step, ...]:
        """Return the steps of a model."""
        return self._steps.get(model, ())

    def count(self, model: str, step: Step, reason: Reason) -> None:
        """Count what was done to a call."""
        key = (model, step.kind, reason)
        self.counts[key] = self.counts.get(key, 0) + 1

    def note_reply(self, caller: Caller, model: str, headers: Mapping[str, str]) -> None:
        """Remember for a while that a caller was told of an exceeded soft budget."""
        key = (caller.tenant, caller.key_id, model)
        self._warned.pop(key, None)
        if WARNING in headers and self._minds_budgets:
            self._warned[key] = self._clock.now() + _WARNED_S
            if len(self._warned) > _MOST_WARNED:
                self._warned.popitem(last=False)

    def is_warned(self, caller: Caller, model: str) -> bool:
        """Say whether a caller's soft budget was exceeded when last it asked this model."""
        return self._warned.get((caller.tenant, caller.key_id, model), 0.0) > self._clock.now()


def read_wish(text: str | None) -> bool:
    """Say whether a caller takes less than it asked for. Raises InvalidRequest."""
    if text not in (None, "never", "allow"):
        raise InvalidRequest(f"{WISH} is '{text[:40] if text else ''}'; write never or allow", param=WISH)
    return text != "never"


def _parse(model: str, text: str) -> tuple[Step, ...]:
    steps = tuple(_step(model, word) for word in text.split())
    if not steps:
        raise ConfigError(f"degrade.steps of '{model}' are empty; write {_FORMS}", param="degrade.steps")
    return steps


def _step(model: str, word: str) -> Step:
    kind, _, rest = word.partition(":")
    match kind:
        case "cache" if not rest:
            return Step("cache")
        case "model" if rest and rest != model:
            return Step("model", model=rest)
        case "shorter" if rest.isdigit() and int(rest) > 0:
            return Step("shorter", int(rest))
        case "shed" if rest.lstrip("-").isdigit() and int(rest) in PRIORITIES:
            return Step("shed", int(rest))
        case _:
            raise ConfigError(f"degrade.steps of '{model}': '{word}' is none; write {_FORMS}", param="degrade.steps")
