"""Check sampling parameters at the door: every range in one table, every refusal with value and range.

Owns nothing. Called by the engine facade before a request becomes sequences, and by the API for early answers.
"""

from __future__ import annotations

import math

from headrace.core.errors import InvalidRequest
from headrace.core.request import SamplingParams

MAX_LOGPROBS = 20  # of a request
MAX_ALTERNATIVES = 64  # that an executor can list, for searches

# field: (lowest, highest, lowest is excluded)
RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 100.0, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "typical_p": (0.0, 1.0, True),
    "repetition_penalty": (0.01, 100.0, False),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
}


def validate(params: SamplingParams, vocab_size: int) -> None:
    """Raise InvalidRequest for the first parameter outside its range; the message names value and range."""
    for name, (low, high, is_open) in RANGES.items():
        value: float = getattr(params, name)
        if not math.isfinite(value) or value > high or value < low or (is_open and value == low):
            raise InvalidRequest(
                f"{name} is {value}; it must be {'above' if is_open else 'at least'} {low:g} and at most {high:g}",
                param=name,
            )
    if params.top_k < 0:
        raise InvalidRequest(f"top_k is {params.top_k}; it must be at least 0 (0 keeps all tokens)", param="top_k")
    if params.min_tokens < 0:
        raise InvalidRequest(f"min_tokens is {params.min_tokens}; it must be at least 0", param="min_tokens")
    if not -(2**63) <= params.seed < 2**64:
        raise InvalidRequest(f"seed is {params.seed}; it must fit in 64 bits", param="seed")
    validate_num_logprobs(params.logprobs, vocab_size, param="logprobs")
    for token_id, bias in params.logit_bias:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token_id}; the model's tokens are 0 to {vocab_size - 1}", param="logit_bias"
            )
        if not -100.0 <= bias <= 100.0:  # also refuses NaN
            raise InvalidRequest(
                f"logit_bias of token {token_id} is {bias}; it must be at least -100 and at most 100",
                param="logit_bias",
            )


def validate_num_logprobs(count: int | None, vocab_size: int, *, param: str) -> None:
    """Raise InvalidRequest unless `count` is None or a number of alternatives that is served."""
    limit = min(MAX_LOGPROBS, vocab_size)
    if count is not None and not 0 <= count <= limit:
        raise InvalidRequest(f"{param} is {count}; it must be at least 0 and at most {limit}", param=param)
