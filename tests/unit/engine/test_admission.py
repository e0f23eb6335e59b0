from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headrace.core.errors import InvalidRequest
from headrace.engine.admission import check_request


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"n": 129}, "n", "n is 129; it must be at least 1 and at most 128"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens is -1"),
        ({"stop_strings": ("a", "")}, "stop", "empty string"),
        ({"stop_strings": ("x",) * 65}, "stop", "65 strings; at most 64"),
        (
            {"stop_token_ids": frozenset({256})},
            "stop_token_ids",
            r"stop token 256 is outside the vocabulary \(0 to 255\)",
        ),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "prompt_logprobs is 21"),
        ({"top_k": -2}, "top_k", "top_k is -2"),
    ],
)
def test_a_bad_value_is_refused_by_name(ask: Callable[..., Any], fields: dict, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        check_request(ask(**fields), 256)
    assert refusal.value.param == param


@pytest.mark.parametrize("token_id", [-1, 256])
def test_prompt_tokens_outside_the_vocabulary_are_refused(ask: Callable[..., Any], token_id: int) -> None:
    request = msgspec.structs.replace(ask(), prompt=(3, token_id, 5))
    with pytest.raises(InvalidRequest, match=f"prompt token {token_id} is outside the vocabulary"):
        check_request(request, 256)


def test_an_ordinary_request_is_accepted(ask: Callable[..., Any]) -> None:
    check_request(ask(n=128, stop_strings=("a",), prompt_logprobs=20, max_tokens=0), 256)
