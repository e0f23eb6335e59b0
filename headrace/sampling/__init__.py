"""How the next token is drawn: checked parameters, random numbers by counter, and the numpy sampler."""

from headrace.sampling.params import MAX_ALTERNATIVES, MAX_LOGPROBS, RANGES, validate, validate_num_logprobs
from headrace.sampling.random import derive_seed, philox4x32, uniform
from headrace.sampling.sampler import sample_rows, score_token

__all__ = [
    "MAX_ALTERNATIVES",
    "MAX_LOGPROBS",
    "RANGES",
    "derive_seed",
    "philox4x32",
    "sample_rows",
    "score_token",
    "uniform",
    "validate",
    "validate_num_logprobs",
]
