from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.core.errors import ConfigError
from headrace.sim import read_trace


def test_prompts_agree_exactly_as_far_as_their_ids(write_trace: Callable[..., Path]) -> None:
    trace = read_trace(write_trace((5000, 1100, 7, [1, 2, 3]), (6500, 1030, 9, [1, 2, 4])))
    first, second = (arrival.prompt() for arrival in trace.arrivals)
    assert [arrival.at_s for arrival in trace.arrivals] == [0.0, 1.5]
    assert (len(first), len(second)) == (1100, 1030)
    assert first[:1024] == second[:1024]
    assert first[1024] != second[1024]
    assert trace.num_distinct_blocks == 4


def test_a_cache_without_a_limit_finds_full_blocks_that_came_before(write_trace: Callable[..., Path]) -> None:
    trace = read_trace(write_trace((0, 1100, 1, [1, 2, 3]), (1, 1536, 1, [1, 2, 3]), (2, 1024, 1, [1, 2])))
    # The third block was not full the first time; the last token is computed however much is cached.
    assert trace.repeated_tokens() == 1024 + 512


def test_azure_requests_share_nothing_with_each_other(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    trace = read_trace(path)
    assert [(a.prompt_len, a.output_len) for a in trace.arrivals] == [(374, 44), (396, 109)]
    assert trace.arrivals[1].at_s == pytest.approx(4.314579)
    assert trace.repeated_tokens() == 0
    assert trace.arrivals[0].prompt()[0] != trace.arrivals[1].prompt()[0]


def test_a_faster_trace_has_the_same_requests_closer_together(write_trace: Callable[..., Path]) -> None:
    trace = read_trace(write_trace((0, 10, 1, [1]), (3000, 10, 1, [1]))).faster(3.0)
    assert [arrival.at_s for arrival in trace.arrivals] == [0.0, 1.0]
    with pytest.raises(ConfigError, match="above 0"):
        trace.faster(0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"timestamp": 0}', "line 1: .*input_length"),
        ('{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}', "1 hash_ids for 600 tokens"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": [1]}', "0 tokens in"),
        ("A,B\n1,2", "line 2: .*TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "no requests"),
    ],
)
def test_a_broken_trace_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(path)


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.jsonl cannot be read"):
        read_trace(tmp_path / "gone.jsonl")
