"""Sizes of recorded steps: every step that a loaded server makes has one near it, and there are not too many."""

from __future__ import annotations

import pytest

from headrace.executor.cuda.buckets import MOST_TOKENS, Bucket, Buckets

SIZE = 32  # of a long tile


@pytest.mark.parametrize("max_rows", [1, 3, 64, 200, 256])
@pytest.mark.parametrize("chunk", [64, 512])
def test_any_chunk_beside_any_rows_is_padded_by_less_than_a_tile_of_products(max_rows: int, chunk: int) -> None:
    buckets = Buckets(max_rows, chunk_tokens=chunk, max_tokens=8192)
    for decoding in range(max_rows):
        for tokens in {1, 2, 5, 31, chunk // 2 + 1, chunk - 1, chunk}:
            total = decoding + tokens
            found = buckets.of_mixed(decoding + 1, total, {SIZE: -(-tokens // SIZE)})
            if total == decoding + 1:
                continue  # of single tokens
            assert found is not None
            assert total <= found.tokens < total + (16 if total <= 16 else 64)
            assert found.rows <= 4 * (decoding + 1) + 3
    assert buckets.of_mixed(max_rows + 1, max_rows + 9, {SIZE: 1}) is None


def test_the_number_of_graphs_is_bounded_whatever_chunks_are() -> None:
    assert len(Buckets(256, chunk_tokens=512, max_tokens=8192).mixed) == 51
    assert len(Buckets(64, chunk_tokens=512, max_tokens=512).mixed) == 29
    longest = Buckets(256, chunk_tokens=8192, max_tokens=8192)
    assert max(bucket.tokens for bucket in longest.mixed) == MOST_TOKENS
    assert len(longest.mixed) <= 100
    assert Buckets(256, chunk_tokens=0, max_tokens=8192).mixed == ()


def test_no_bucket_is_longer_than_what_a_model_has_room_for() -> None:
    assert [*Buckets(5, chunk_tokens=512, max_tokens=24).mixed] == [(4, 16), (4, 24), (5, 16), (5, 24)]
    assert max(bucket.tokens for bucket in Buckets(64, chunk_tokens=512, max_tokens=512).mixed) == 512


def test_parts_of_many_prompts_fit_and_more_are_left_to_single_ops() -> None:
    buckets = Buckets(256, chunk_tokens=512, max_tokens=8192)
    assert buckets.of_mixed(40, 540, {SIZE: 16 + 32}) == Bucket(64, 576)
    assert buckets.of_mixed(100, 540, {SIZE: 60}) is None


def test_single_tokens_are_padded_finely() -> None:
    buckets = Buckets(256, chunk_tokens=512, max_tokens=8192)
    assert [buckets.of_single(rows) for rows in (1, 3, 65, 256)] == [(1, 0), (4, 0), (80, 0), (256, 0)]
    assert buckets.of_single(257) is None
