"""How products are cut on an H200: enough in flight, all resident, little beside the weights. No GPU is needed."""

from __future__ import annotations

import itertools

import pytest

from headrace.executor.cuda.buckets import Buckets
from headrace.executor.cuda.warm_up import eager_rows
from headrace.ops.cuda.tiling import NUM_MULTIPROCESSORS, Count, Tiling, bucket, counted, most_tokens, tiling

# Outputs and inputs of the layers of an 8B and of a 1B model, and of their heads.
LARGE = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
SMALL = [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)]
PACKED = ["int8", "int8 g32", "int4 g32"]
FORMS = {"bf16": (1, 2.0), "fp8": (1, 1.0), "int8": (64, 1.0), "int8 g32": (64, 1.0625), "int4 g32": (128, 0.625)}


def cut(form: str, shape: tuple[int, int], block_t: int, itemsize: int = 2) -> Tiling:
    chunk, held = FORMS[form]
    return tiling(n=shape[0], k=shape[1], chunk=chunk, bytes_per_input=held, num_tokens=block_t, itemsize=itemsize)


@pytest.mark.parametrize("form", FORMS)
def test_single_tokens_keep_48_kb_in_flight_on_every_multiprocessor(form: str) -> None:
    for shape in LARGE:
        tile = cut(form, shape, 8)
        most = 16 / tile.num_warps
        resident = min(-(-shape[0] // tile.block_n) * tile.num_parts / NUM_MULTIPROCESSORS, most)
        turn = tile.block_n * tile.block_k * FORMS[form][1]
        ahead = min(tile.buffers - 1, tile.num_turns)
        assert resident * ahead * turn >= 48 << 10, (shape, tile)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block_t", [8, 16, 32, 64])
def test_all_programs_of_a_layer_are_resident_at_once(form: str, block_t: int) -> None:
    for shape in [*LARGE[:4], *SMALL[:4]]:
        tile = cut(form, shape, block_t)
        resident = -(-(-(-shape[0] // tile.block_n) * tile.num_parts) // NUM_MULTIPROCESSORS)
        turn = tile.block_n * tile.block_k * FORMS[form][1] + block_t * tile.block_k * 2
        assert resident * tile.num_warps <= 16, (shape, tile)
        assert resident * (tile.buffers * turn + 1024) <= 227 << 10, (shape, tile)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block_t", [8, 16, 32])
def test_sums_of_parts_are_no_more_than_the_weight(form: str, block_t: int) -> None:
    for n, k in (*LARGE, *SMALL):
        tile = cut(form, (n, k), block_t)
        assert tile.num_parts == 1 or tile.num_parts * block_t * 8 <= k * FORMS[form][1], (n, k, tile)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_parts_meet_every_input_once_whatever_the_shape(form: str, itemsize: int) -> None:
    for n, k, block_t in itertools.product((16, 130, 5000), (32, 96, 576, 4096, 11008), (8, 16, 32, 64, 256)):
        tile = cut(form, (n, k), block_t, itemsize)
        assert tile.block_k % FORMS[form][0] == 0
        length = tile.num_turns * tile.block_k
        assert (tile.num_parts - 1) * length < k <= tile.num_parts * length, (n, k, tile)


def test_batches_share_six_buckets() -> None:
    assert {bucket(tokens) for tokens in range(1, 257)} == {8, 16, 32, 64, 128, 256}
    assert all(bucket(tokens) >= tokens for tokens in range(1, 257))


def test_warming_up_meets_every_bucket_and_the_library() -> None:
    steps = eager_rows(Buckets(1, chunk_tokens=0, max_tokens=512), 512, 0, 16)
    counts = {sum(len(row.tokens) for row in rows) for rows, _ in steps}
    assert {bucket(tokens) for tokens in counts if 0 < tokens <= 256} == {8, 16, 32, 64, 128, 256}
    assert {tokens > 256 for tokens in counts} == {False, True}


def test_what_the_library_would_decode_first_is_multiplied_here_with_more_tokens() -> None:
    assert {most_tokens(chunk=chunk, itemsize=2) for chunk in (64, 128)} == {256}
    assert most_tokens(chunk=1, itemsize=2) == 64
    assert most_tokens(chunk=128, itemsize=4) == 64  # no registers for tiles of so many numbers of fp32


def count(form: str, shape: tuple[int, int], num_tokens: int, tile: Tiling | None = None) -> Count:
    tile = tile or cut(form, shape, num_tokens)
    n, k = shape
    return counted(tile, n=n, k=k, bytes_per_input=FORMS[form][1], num_tokens=num_tokens, itemsize=2)


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("num_tokens", [128, 256])
def test_up_to_256_tokens_a_packed_weight_takes_less_than_decoding_it_and_the_librarys_product(
    form: str, num_tokens: int
) -> None:
    for shapes in (LARGE, SMALL):
        here, there = 0.0, 0.0
        for n, k in shapes:
            written, numbers = 2 * n * k, n * k
            decoding = (FORMS[form][1] * numbers + written) / 5.5e12  # all of it stays in the L2 cache, at best
            product = max(2 * num_tokens * numbers / 790e12, written / 5.5e12)
            launches = 2.5e-6 * 2 * -(-n // 16384)  # for each slab, and one for what becomes of the product
            took, library = count(form, (n, k), num_tokens).took_s, decoding + product + launches
            assert took < library, (n, k)
            here, there = here + took, there + library
        assert here < 0.75 * there


@pytest.mark.parametrize("form", FORMS)
def test_sums_that_one_program_reads_alone_are_counted(form: str) -> None:
    tile = cut(form, (4096, 14336), 64)
    assert tile.num_parts > 1
    summing = count(form, (4096, 14336), 64).summing_s
    doubled = Tiling(**{name: getattr(tile, name) for name in Tiling.__slots__} | {"num_parts": 2 * tile.num_parts})
    assert count(form, (4096, 14336), 64, doubled).summing_s == pytest.approx(2 * summing)
    assert 0 < summing < 0.35 * count(form, (4096, 14336), 64).took_s


def test_tokens_that_weigh_more_than_the_weight_are_read_by_wide_programs() -> None:
    for form, num_tokens in (("bf16", 64), ("fp8", 64), ("int4 g32", 64), ("int8 g32", 128), ("int4 g32", 256)):
        assert cut(form, (28672, 4096), num_tokens).block_n == 256


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared_bytes", [99 << 10, 163 << 10, 227 << 10])  # compute capability 8.9, 8.0, 9.0
def test_programs_fit_into_the_shared_memory_of_older_gpus(form: str, shared_bytes: int) -> None:
    chunk, held = FORMS[form]
    for (n, k), block_t in itertools.product((*LARGE, *SMALL), (8, 16, 32, 64, 128, 256)):
        tile = tiling(
            n=n, k=k, chunk=chunk, bytes_per_input=held, num_tokens=block_t, itemsize=2, shared_bytes=shared_bytes
        )  # fmt: skip
        turn = tile.block_n * tile.block_k * held + tile.block_t * tile.block_k * 2
        assert tile.buffers * turn <= shared_bytes, (n, k, tile)
