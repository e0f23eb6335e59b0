"""How products are cut on an H200: enough in flight, all resident, little beside the weights. No GPU is needed."""

from __future__ import annotations

import itertools

import pytest

from headrace.ops.cuda.tiling import NUM_MULTIPROCESSORS, Tiling, bucket, tiling

# Outputs and inputs of the layers of an 8B and of a 1B model, and of their heads.
LARGE = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
SMALL = [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)]
FORMS = {"bf16": (1, 2.0), "fp8": (1, 1.0), "int8": (64, 1.0), "int8 g32": (64, 1.0625), "int4 g32": (128, 0.625)}


def cut(form: str, shape: tuple[int, int], block_t: int, itemsize: int = 2) -> Tiling:
    chunk, held = FORMS[form]
    return tiling(n=shape[0], k=shape[1], chunk=chunk, bytes_per_input=held, block_t=block_t, itemsize=itemsize)


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
@pytest.mark.parametrize("block_t", [8, 16, 32, 64])
def test_sums_of_parts_are_no_more_than_the_weight(form: str, block_t: int) -> None:
    for n, k in (*LARGE, *SMALL):
        tile = cut(form, (n, k), block_t)
        assert tile.num_parts == 1 or tile.num_parts * block_t * 8 <= k * FORMS[form][1], (n, k, tile)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_parts_meet_every_input_once_whatever_the_shape(form: str, itemsize: int) -> None:
    for n, k, block_t in itertools.product((16, 130, 5000), (32, 96, 576, 4096, 11008), (8, 16, 32, 64)):
        tile = cut(form, (n, k), block_t, itemsize)
        assert tile.block_k % FORMS[form][0] == 0
        length = tile.num_turns * tile.block_k
        assert (tile.num_parts - 1) * length < k <= tile.num_parts * length, (n, k, tile)


def test_batches_share_four_sizes_of_tiles() -> None:
    assert {bucket(tokens) for tokens in range(1, 65)} == {8, 16, 32, 64}
    assert all(bucket(tokens) >= tokens for tokens in range(1, 65))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared_bytes", [99 << 10, 163 << 10, 227 << 10])  # compute capability 8.9, 8.0, 9.0
def test_programs_fit_into_the_shared_memory_of_older_gpus(form: str, shared_bytes: int) -> None:
    chunk, held = FORMS[form]
    for (n, k), block_t in itertools.product((*LARGE, *SMALL), (8, 16, 32, 64)):
        tile = tiling(
            n=n, k=k, chunk=chunk, bytes_per_input=held, block_t=block_t, itemsize=2, shared_bytes=shared_bytes
        )  # fmt: skip
        turn = tile.block_n * tile.block_k * held + block_t * tile.block_k * 2
        assert tile.buffers * turn <= shared_bytes, (n, k, tile)
