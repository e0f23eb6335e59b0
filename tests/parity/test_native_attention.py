"""Native paged attention against numpy, and against itself: the tiling must not change a bit."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.ops import reference
from tests.parity.attention_cases import CASES, KV_TYPES, Case
from tests.parity.native_drive import ISAS, forced, needs_native

pytestmark = needs_native
ops = pytest.importorskip("headrace.ops.native.ops", reason="no native library")

# (start, length) of each row: decode, whole prompts, chunks that begin and end inside KV tiles
SPANS = ((0, 1), (0, 200), (130, 1), (63, 2), (64, 65), (17, 100), (511, 3), (1030, 1), (900, 130))


class Filled(NamedTuple):
    """A filled cache and the queries over it."""

    cache: ops.PagedCache  # type: ignore[name-defined]
    tables: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    positions: NDArray[np.int32]
    q: NDArray[np.float32]


@cache
def filled(case: Case, kv_type: str) -> Filled:
    """Write random K and V for every position of every row, into blocks that held NaN before."""
    random = np.random.default_rng(0)
    size = case.block_size
    counts = [-(-(start + length) // size) for start, length in SPANS]
    order = random.permutation(sum(counts)).astype(np.int32)
    tables = np.full((len(SPANS), max(counts)), -1, np.int32)
    kv = ops.PagedCache(
        num_blocks=sum(counts), block_size=size, kv_heads=case.kv_heads, head_dim=case.head_dim, kv_type=kv_type
    )
    kv.spoil()
    for row, (start, length) in enumerate(SPANS):
        tables[row, : counts[row]], order = order[: counts[row]], order[counts[row] :]
        where = np.arange(start + length)
        qkv = random.standard_normal((start + length, (case.num_heads + 2 * case.kv_heads) * case.head_dim), np.float32)
        slots = tables[row, where // size].astype(np.int64) * size + where % size
        ops.qk_write(qkv, kv, slots, num_heads=case.num_heads, cos=None, sin=None, clears_tail=where == where[-1])
    lengths = [length for _, length in SPANS]
    positions = np.concatenate([np.arange(start, start + length) for start, length in SPANS]).astype(np.int32)
    q = random.standard_normal((sum(lengths), case.num_heads * case.head_dim), np.float32)
    return Filled(kv, tables, np.cumsum([0, *lengths]).astype(np.int32), positions, q)


def attend(case: Case, f: Filled, **options: int) -> NDArray[np.float32]:
    out: NDArray[np.float32] = ops.attention(
        f.q,
        f.cache,
        f.tables,
        f.row_starts,
        f.positions,
        scale=case.head_dim**-0.5,
        window=case.window,
        softcap=case.softcap,
        sinks=case.sinks,
        reach=case.reach,
        inv_freq=case.inv_freq,
        **options,
    )
    return out


@cache
def exact(case: Case, kv_type: str) -> NDArray[np.float32]:
    """Return what numpy makes of the same K and V."""
    f = filled(case, kv_type)
    return reference.attention(
        f.q,
        np.nan_to_num(f.cache.unpack()),
        f.tables,
        f.row_starts,
        f.positions,
        scale=case.head_dim**-0.5,
        window=case.window,
        softcap=case.softcap,
        sinks=case.sinks,
        paths=[reference.Path(case.reach, 0)] * len(SPANS),
        inv_freq=case.inv_freq,
    )


# Relative to the same K and V: bf16 rounds q and the weights to 8 bits, int8 keeps 15 of both.
TOLERANCE = {"bf16": 5e-3, "int8": 2e-4}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_matches_the_reference_whatever_the_blocks_held_before(isa: str, case: Case, kv_type: str) -> None:
    f, expected = filled(case, kv_type), exact(case, kv_type)
    with forced(isa):
        result = attend(case, f)
    assert np.linalg.norm(result - expected) < TOLERANCE[kv_type] * np.linalg.norm(expected)
    np.testing.assert_allclose(result, expected, atol=4 * TOLERANCE[kv_type])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_querys_result_has_the_same_bits_in_every_tiling_and_split(isa: str, case: Case, kv_type: str) -> None:
    f = filled(case, kv_type)
    with forced(isa):
        expected = attend(case, f).view(np.uint32)
        np.testing.assert_array_equal(attend(case, f, is_split=True).view(np.uint32), expected)
        np.testing.assert_array_equal(attend(case, f, is_split=True, item_rows=4).view(np.uint32), expected)
        for item_rows in (1, 2, 5, 7, 64):
            np.testing.assert_array_equal(attend(case, f, item_rows=item_rows).view(np.uint32), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_query_gives_the_same_bits_as_decode_and_inside_a_prompt(isa: str, kv_type: str) -> None:
    case = Case(6, 2, 64, 32, window=70)
    f = filled(case, kv_type)
    with forced(isa):
        whole = attend(case, f)
        row, first, stop = 1, int(f.row_starts[1]), int(f.row_starts[2])
        for token in (first, first + 63, first + 64, first + 101, stop - 1):
            alone = Filled(
                f.cache,
                f.tables[row : row + 1].copy(),
                np.array([0, 1], np.int32),
                f.positions[token : token + 1].copy(),
                f.q[token : token + 1].copy(),
            )
            np.testing.assert_array_equal(attend(case, alone)[0].view(np.uint32), whole[token].view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
def test_small_weights_far_from_the_largest_still_count_with_int8_kv(isa: str) -> None:
    kv = ops.PagedCache(num_blocks=64, block_size=16, kv_heads=1, head_dim=16, kv_type="int8")
    length = 1024
    qkv = np.zeros((length, 3 * 16), np.float32)
    qkv[:, 16:32] = 1.0  # every key scores the same …
    qkv[512, 16:32] = 1.5  # … but one, which weighs e^8 times as much
    qkv[:, 32:] = 1.0
    qkv[512, 32:] = 0.0
    q, tables = np.full((1, 16), 1.0, np.float32), np.arange(64, dtype=np.int32)[None]
    starts, positions = np.array([0, 1], np.int32), np.array([length - 1], np.int32)
    with forced(isa):
        ops.qk_write(qkv, kv, np.arange(length, dtype=np.int64), num_heads=1, cos=None, sin=None)
        got = ops.attention(q, kv, tables, starts, positions, scale=1.0)
    expected = reference.attention(q, kv.unpack(), tables, starts, positions, scale=1.0)
    assert expected.min() > 0.2
    np.testing.assert_allclose(got, expected, rtol=1e-4)
