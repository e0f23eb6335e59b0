"""No native op touches a byte outside its buffers: everything it is given lies between pages without access.

The numbers must not change either: what lies beyond a ragged end is never read and thrown away. Products of matrices
are in test_native_linear.py.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import BlockCopy, CopyKind, Row, Step
from headrace.executor import native as native_executor
from headrace.executor import step_arrays
from headrace.executor.native import NativeExecutor, kv_block_bytes
from headrace.executor.step_arrays import sampling_record
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.quant.formats import Format
from headrace.testing.checkpoints import VOCAB_SIZE, Family, write_checkpoint
from tests.parity.attention_cases import CASES, KV_TYPES, Case
from tests.parity.fences import SIDES, FencedNumpy, Side, fenced, fenced_bytes
from tests.parity.native_drive import ISAS, forced, needs_native

pytestmark = needs_native
ops = pytest.importorskip("headrace.ops.native.ops", reason="no native library")
linear = pytest.importorskip("headrace.ops.native.linear", reason="no native library")
library = pytest.importorskip("headrace.ops.native.library", reason="no native library")

Floats = NDArray[np.float32]
Fence = Callable[[NDArray], NDArray]  # type: ignore[type-arg]

WIDTHS = (1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 577)
# (start, length) of the rows of a step: decode, a prompt, both and chunks that end inside blocks, tiles, spans of tiles
STEPS = (((33, 1),), ((0, 70),), ((0, 1), (130, 17), (515, 2)))


def plain(values: NDArray) -> NDArray:  # type: ignore[type-arg]
    return values


def same_bits(
    monkeypatch: pytest.MonkeyPatch,
    compute: Callable[[Fence], NDArray],  # type: ignore[type-arg]
) -> None:
    """Compute in plain memory, then with everything fenced: what the computation takes and what the ops allocate."""
    expected = compute(plain).tobytes()
    for side in SIDES:
        with monkeypatch.context() as patch:
            patch.setattr(ops, "np", FencedNumpy(side))
            got = compute(partial(fenced, side=side))
        assert got.tobytes() == expected, side


@pytest.mark.parametrize(("side", "index"), [("end", 12), ("start", -1)])
def test_a_byte_past_a_fence_ends_the_process(side: Side, index: int) -> None:
    code = (
        "import ctypes, numpy; from tests.parity.fences import fenced; "
        f"kept = fenced(numpy.zeros(3, numpy.float32), '{side}'); at = kept.ctypes.data; "
        f"print(ctypes.string_at(at, 12), flush=True); ctypes.string_at(at + {index}, 1)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout == f"{bytes(12)!r}\n"
    assert ended.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("isa", ISAS)
def test_norms_of_ragged_rows(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in WIDTHS:
        x, weight, residual = np.random.default_rng(width).standard_normal((3, 2, width), np.float32)

        def compute(
            place: Fence, x: Floats = x, weight: Floats = weight[0], residual: Floats = residual
        ) -> NDArray[np.float32]:
            alone = ops.rms_norm(place(x), place(weight), eps=1e-5)
            return np.stack([alone, ops.rms_norm(place(x), place(weight), eps=1e-5, add_to=place(residual))])

        with forced(isa):
            same_bits(monkeypatch, compute)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(
    ("num_heads", "kv_heads", "head_dim", "half", "has_norms"),
    [(9, 3, 64, 32, False), (4, 2, 24, 12, True), (2, 2, 8, 2, False), (3, 1, 80, 0, True), (1, 1, 6, 3, True)],
)
def test_head_norm_rotation_and_kv_writes(
    isa: str,
    kv_type: str,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    half: int,
    has_norms: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(head_dim)
    num_tokens, block_size, num_blocks = 37, 16, 3
    qkv = random.standard_normal((num_tokens, (num_heads + 2 * kv_heads) * head_dim), np.float32)
    slots = np.concatenate([np.arange(0, 20), np.arange(31, 48)])  # the first and the last place there is
    clears_tail = np.isin(slots, (0, 19, 31, 46, 47))
    cos, sin = random.standard_normal((2, num_tokens, half), np.float32)
    q_norm, k_norm = random.standard_normal((2, head_dim), np.float32)

    def compute(place: Fence) -> NDArray[np.uint8]:
        cache = ops.PagedCache(
            num_blocks=num_blocks, block_size=block_size, kv_heads=kv_heads, head_dim=head_dim, kv_type=kv_type
        )
        q = ops.qk_write(
            place(qkv),
            cache,
            slots,
            num_heads=num_heads,
            cos=place(cos) if half else None,
            sin=place(sin) if half else None,
            q_norm=place(q_norm) if has_norms else None,
            k_norm=place(k_norm) if has_norms else None,
            clears_tail=clears_tail,
        )
        return np.concatenate([q.view(np.uint8).reshape(-1), cache.k, cache.v])

    with forced(isa):
        same_bits(monkeypatch, compute)


@cache
def noise(rows: int, width: int) -> Floats:
    return np.random.default_rng(rows).standard_normal((rows, width), np.float32)


def attend(case: Case, kv_type: str, spans: tuple[tuple[int, int], ...], place: Fence) -> Floats:
    """Attend in one mixed step to blocks that are written first and lie in order, the last one behind all others."""
    size = case.block_size
    counts = [-(-(start + length) // size) for start, length in spans]
    firsts = np.cumsum([0, *counts])
    tables = np.stack([np.minimum(first + np.arange(max(counts)), sum(counts) - 1) for first in firsts[:-1]])
    kv = ops.PagedCache(
        num_blocks=sum(counts), block_size=size, kv_heads=case.kv_heads, head_dim=case.head_dim, kv_type=kv_type
    )
    kv.spoil()
    for first, (start, length) in zip(firsts, spans, strict=False):
        where = np.arange(start + length)
        qkv = noise(start + length, (case.num_heads + 2 * case.kv_heads) * case.head_dim)
        ops.qk_write(
            place(qkv), kv, first * size + where, num_heads=case.num_heads, cos=None, sin=None,
            clears_tail=where == where[-1],
        )  # fmt: skip
    lengths = [length for _, length in spans]
    positions = np.concatenate([np.arange(start, start + length) for start, length in spans]).astype(np.int32)
    q = place(noise(sum(lengths), case.num_heads * case.head_dim))
    sinks = None if case.sinks is None else place(case.sinks)
    results = []
    for item_rows, is_split in ((48, False), (5, False), (64, True)):
        out = ops.attention(
            q,
            kv,
            place(tables.astype(np.int32)),
            np.cumsum([0, *lengths]).astype(np.int32),
            positions,
            scale=case.head_dim**-0.5,
            window=case.window,
            softcap=case.softcap,
            sinks=sinks,
            reach=case.reach,
            inv_freq=case.inv_freq,
            item_rows=item_rows,
            is_split=is_split,
        )
        results.append(out)
    return np.stack(results)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_of_decode_prefill_and_mixed_steps(
    isa: str, case: Case, kv_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forced(isa):
        for spans in STEPS:
            same_bits(monkeypatch, lambda place, spans=spans: attend(case, kv_type, spans, place))  # type: ignore[misc]


@pytest.mark.parametrize("isa", ISAS)
def test_logits_and_draws_from_ragged_vocabularies(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = (
        SamplingParams(temperature=0.0, logprobs=20),
        SamplingParams(temperature=1.0, seed=3),
        SamplingParams(temperature=0.7, top_k=40, top_p=0.9, logprobs=3),
        SamplingParams(temperature=1.3, min_p=0.05, typical_p=0.6, seed=9),
        SamplingParams(temperature=0.8, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=-0.2),
    )
    for vocab in (*WIDTHS, 1003, 2049):
        random = np.random.default_rng(vocab)
        logits = random.standard_normal(vocab, np.float32) * 4
        ids = [0, *random.integers(0, vocab, 8).tolist(), vocab - 1]

        def compute(place: Fence, logits: Floats = logits, ids: list[int] = ids) -> NDArray[np.uint8]:
            vocab = len(logits)
            parts = [ops.finish_logits(place(logits), scale=0.5, softcap=cap) for cap in (None, 30.0)]
            parts += [ops.score_row(place(logits), token, num_top=64) for token in (0, vocab - 1)]
            for params in choices:
                bias = ((vocab - 1, 2.0), (0, -1.0)) if params.seed == 3 else ()
                banned = (vocab // 2,) if params.seed == 9 else ()
                record = sampling_record(params, vocab)
                parts.append(ops.sample_row(place(logits), record, history=ids, prompt_len=4, bias=bias, banned=banned))
            return np.concatenate([np.frombuffer(part.tobytes(), np.uint8) for part in parts])

        with forced(isa):
            same_bits(monkeypatch, compute)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("source", list(linear.Source), ids=str)
def test_rows_of_every_source_are_packed_and_gathered_back(
    side: Side, source: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k = 45, 256
    shape = linear.exact_shape(source, n, k) or linear.WeightShape(format=linear.WeightFormat.BF16, n=n, k=k)
    rows = np.random.default_rng(2).integers(0, 0x40, (n, Format[source.name].row_bytes(k)), np.uint8)  # type: ignore[attr-defined]
    packed = linear.PackedMatrix(shape)
    with library.Pool(2) as pool:
        packed.pack(pool, source, rows)
        expected = packed.to_float()
        with monkeypatch.context() as patch:
            patch.setattr(linear, "np", FencedNumpy(side))
            patch.setattr(linear, "aligned_bytes", lambda size: fenced_bytes(size, side, alignment=64))
            again = linear.PackedMatrix(shape)
            again.pack(pool, source, fenced(rows, side))
            for first in (0, 31, n - 1):
                assert again.to_float(first).tobytes() == expected[first:].tobytes()


def fence_program(patch: pytest.MonkeyPatch, side: Side) -> None:
    """Have the next executor keep its weights, vectors and step arrays fenced."""
    describe = native_executor.program_parts

    def fenced_parts(*args: object) -> object:
        parts = describe(*args)  # type: ignore[arg-type]
        weights = []
        for weight in parts.weights:
            size = library.library().hr_packed_bytes(ctypes.byref(weight))
            memory = fenced_bytes(size, side, alignment=64)
            ctypes.memmove(memory.ctypes.data, weight.base, size)
            copy = type(weight).from_buffer_copy(weight)
            copy.base, copy.memory = memory.ctypes.data, memory
            weights.append(copy)
        return replace(
            parts,
            weights=weights,
            vectors=[fenced(vector, side) for vector in parts.vectors],
            ropes=[(fenced(inv_freq, side), scale) for inv_freq, scale in parts.ropes],
        )

    patch.setattr(native_executor, "program_parts", fenced_parts)
    patch.setattr(native_executor, "np", FencedNumpy(side))
    patch.setattr(step_arrays, "np", FencedNumpy(side))


class OneSlot:
    """Host memory for one block."""

    def __init__(self, slot: NDArray[np.uint8]) -> None:
        self._slot = slot

    def slot(self, index: int) -> memoryview:
        return self._slot.data

    def whole(self) -> memoryview:
        return self._slot.data


def run_steps(path: Path, isa: str, place: Fence) -> list[object]:
    """Fill, mix, decode from a block that was away until every step array is full; return what came out."""
    params = SamplingParams(
        temperature=0.9, top_k=50, repetition_penalty=1.2, logprobs=5, logit_bias=((VOCAB_SIZE - 1, 1.0),), seed=4
    )
    prompt = tuple(np.random.default_rng(5).integers(0, VOCAB_SIZE, 34).tolist())
    last = VOCAB_SIZE - 1
    with open_checkpoint(path) as checkpoint, forced(isa):
        program = build_program(checkpoint.config)
        slot = place(np.zeros(kv_block_bytes(program.cache_layers, block_size=16), np.uint8))
        executor = NativeExecutor(
            program,
            checkpoint,
            host=OneSlot(slot),
            num_blocks=4,
            block_size=16,
            threads=2,
            max_step_tokens=35,
        )
        try:
            first = Row(
                seq_id=SeqId(0), start=0, tokens=(*prompt[1:], last), blocks=(0, 1, 3), sampling=params,
                prompt_len=20, history=prompt, banned=(last,), score=((0, 1), (33, last)), num_score_top=64,
            )  # fmt: skip
            other = Row(seq_id=SeqId(1), start=0, tokens=(last,), blocks=(2,), sampling=params, history=(last,))
            decode = Row(seq_id=SeqId(0), start=34, tokens=(0,), blocks=(0, 1, 3), sampling=SamplingParams())
            away = (BlockCopy(CopyKind.SAVE, 1, 0), BlockCopy(CopyKind.DUPLICATE, 2, 1), BlockCopy(CopyKind.LOAD, 0, 1))
            steps = [Step(0, (first, other)), Step(1, (decode,), copies=away)]
            results: list[object] = []
            for step in steps:
                result = executor.launch(step).result()
                results.append((result.samples, result.scored, result.failures))
            results.append(executor.logits(Step(2, (decode,))).tobytes())
            results.append(slot.tobytes())
        finally:
            executor.shutdown()
    return results


@pytest.mark.parametrize("isa", [*ISAS, *([library.EMULATED_ISA] if library.can_emulate_tiles() else [])])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2", "qwen3"])
def test_whole_steps_from_the_embedding_to_the_draw(
    tmp_path: Path, family: Family, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    expected = run_steps(path, isa, plain)
    assert expected[0][2] == {}  # type: ignore[index]
    for side in SIDES:
        with monkeypatch.context() as patch:
            fence_program(patch, side)
            assert run_steps(path, isa, partial(fenced, side=side)) == expected
