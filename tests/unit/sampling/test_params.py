from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import InvalidRequest
from headrace.core.request import SamplingParams
from headrace.sampling import validate


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, r"temperature is -0.1; it must be at least 0 and at most 100"),
        ("temperature", float("nan"), "temperature is nan"),
        ("top_p", 0.0, "top_p is 0.0; it must be above 0 and at most 1"),
        ("top_p", 1.5, "top_p is 1.5"),
        ("min_p", 1.1, "min_p is 1.1"),
        ("typical_p", 0.0, "typical_p is 0.0"),
        ("top_k", -1, "top_k is -1; it must be at least 0"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0.0"),
        ("presence_penalty", 2.5, "presence_penalty is 2.5; it must be at least -2 and at most 2"),
        ("frequency_penalty", float("inf"), "frequency_penalty is inf"),
        ("min_tokens", -3, "min_tokens is -3"),
        ("seed", 2**64, "fit in 64 bits"),
        ("logprobs", 21, "logprobs is 21; it must be at least 0 and at most 20"),
        ("logit_bias", ((50, 1.0),), "logit_bias names token 50; the model's tokens are 0 to 49"),
        ("logit_bias", ((1, float("nan")),), "logit_bias of token 1 is nan"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_range(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        validate(SamplingParams(**{field: value}), 50)
    assert refusal.value.param == field


def test_defaults_and_extremes_are_accepted() -> None:
    validate(SamplingParams(), 50)
    validate(SamplingParams(temperature=0.0, top_k=10**6, logprobs=20, seed=-(2**63), logit_bias=((49, -100.0),)), 50)
