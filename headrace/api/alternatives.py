"""From `n`, `best_of` and the beam-search fields to how many answers are drawn or searched, and how many are given.

Owns nothing. Called by `params` for every request. Names and meaning are vLLM's: with `use_beam_search`, `best_of` is
the beam width, and `n` without it. Neither can be streamed: which answer is the best is known at the end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from headrace.api.openai_types import GenerationBody
from headrace.core.errors import InvalidRequest
from headrace.core.request import BeamParams

MAX_CHOICES = 128
MAX_LENGTH_PENALTY = 10.0


class Alternatives(NamedTuple):
    """`n` answers are given. `best_of`: out of how many drawn ones, None: all; `beam`: the search that finds them."""

    n: int
    best_of: int | None = None
    beam: BeamParams | None = None


def alternatives(body: GenerationBody, logprobs: int | None) -> Alternatives:
    """Read the fields. Raises InvalidRequest for values out of range and for what a search would have to ignore."""
    n = _bounded("n", body.n, 1, MAX_CHOICES) or 1
    best_of = _bounded("best_of", body.best_of, 1, MAX_CHOICES) or n
    if best_of < n:
        raise InvalidRequest(f"best_of is {best_of} and n is {n}; best_of must be at least n", param="best_of")
    if not body.use_beam_search:
        _refuse_given(body, ("length_penalty", "early_stopping"), "needs use_beam_search: true")
        if best_of == n:
            return Alternatives(n)
        _refuse_stream(body, "best_of above n")
        return Alternatives(n, best_of)
    _refuse_stream(body, "use_beam_search")
    _refuse_sampling(body)
    if logprobs is not None:
        raise InvalidRequest("logprobs are not served with use_beam_search; drop one of them", param="logprobs")
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    if not (math.isfinite(penalty) and abs(penalty) <= MAX_LENGTH_PENALTY):
        raise InvalidRequest(
            f"length_penalty is {penalty}; it must be between -{MAX_LENGTH_PENALTY:g} and {MAX_LENGTH_PENALTY:g}",
            param="length_penalty",
        )
    beam = BeamParams(width=best_of, length_penalty=penalty, early_stopping=bool(body.early_stopping))
    return Alternatives(n, None, beam)


def _refuse_stream(body: GenerationBody, why: str) -> None:
    if body.stream:
        raise InvalidRequest(f"{why} cannot be streamed: the best is known at the end; drop one", param="stream")


def _refuse_given(body: GenerationBody, names: tuple[str, ...], remedy: str) -> None:
    for name in names:
        value = getattr(body, name)
        if value not in (None, False) and not (name == "length_penalty" and value == 1.0):
            raise InvalidRequest(f"{name} {remedy}", param=name)


def _refuse_sampling(body: GenerationBody) -> None:
    """Refuse what draws tokens: a search takes the likeliest."""
    neutral: dict[str, tuple[object, ...]] = {
        "temperature": (0, 1),
        "top_p": (1,),
        "top_k": (0, -1),
        "min_p": (0,),
        "typical_p": (1,),
        "repetition_penalty": (1,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
    }
    for name, values in neutral.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            raise InvalidRequest(f"{name} is {value}; beam search has no use for it, leave it out", param=name)


def _bounded(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} is {value}; it must be between {low} and {high}", param=name)
    return value
