"""Blocks copied inside a Step: on every executor the copied block answers as the one it was copied from."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.protocols import Executor
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import KvDtype
from headrace.core.step import BlockCopy, CopyKind, Row, Step
from headrace.executor import ReferenceExecutor, block_bytes
from headrace.executor.native import NativeExecutor, kv_block_bytes
from headrace.model import build_program, open_checkpoint
from headrace.testing import UniformModel
from headrace.testing.checkpoints import write_checkpoint
from headrace.testing.uniform_model import TOKEN_BYTES
from tests.parity.native_drive import NATIVE_PROBLEM

BLOCK = 16
PROMPT = [(7 * i + 3) % 200 for i in range(2 * BLOCK + 1)]
GREEDY = SamplingParams(temperature=0.0, logprobs=3)


class Slots:
    """Four host slots of some size."""

    def __init__(self, slot_bytes: int) -> None:
        self._slots = [memoryview(bytearray(slot_bytes)) for _ in range(4)]

    def whole(self) -> memoryview:
        raise AssertionError("the CPU backends lock no memory")

    def slot(self, index: int) -> memoryview:
        return self._slots[index]


def open_executor(kind: str, path: Path, kv_dtype: KvDtype = "auto") -> tuple[Executor, Slots]:
    if kind == "uniform":
        slots = Slots(BLOCK * TOKEN_BYTES)
        return UniformModel(num_blocks=8, block_size=BLOCK, vocab_size=200, host=slots), slots
    checkpoint = open_checkpoint(write_checkpoint(path / "model", "gemma3"))
    program = build_program(checkpoint.config)
    if kind == "reference":
        slots = Slots(block_bytes(program.cache_layers, block_size=BLOCK, kv_dtype=kv_dtype))
        executor: Executor = ReferenceExecutor(
            program, checkpoint, num_blocks=8, block_size=BLOCK, kv_dtype=kv_dtype, host=slots
        )
    else:
        slots = Slots(kv_block_bytes(program.cache_layers, block_size=BLOCK, kv_dtype=kv_dtype))
        executor = NativeExecutor(
            program, checkpoint, num_blocks=8, block_size=BLOCK, threads=1, kv_dtype=kv_dtype, host=slots
        )
    checkpoint.close()
    return executor, slots


@pytest.fixture(params=["uniform", "reference", "reference int8", "native", "native int8"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Executor, Slots]:
    kind, _, kv_dtype = request.param.partition(" ")
    if kind == "native" and NATIVE_PROBLEM:
        pytest.skip(NATIVE_PROBLEM)
    return open_executor(kind, tmp_path, kv_dtype or "auto")


def last_token(blocks: tuple[int, ...]) -> Row:
    return Row(SeqId(blocks[0]), 2 * BLOCK, PROMPT[-1:], blocks, GREEDY)


def test_a_block_saved_and_loaded_elsewhere_answers_the_same(opened: tuple[Executor, Slots]) -> None:
    executor, _ = opened
    cold = executor.launch(Step(0, (Row(SeqId(0), 0, PROMPT, (0, 1, 2), GREEDY),))).result().samples
    saves = (BlockCopy(CopyKind.SAVE, 0, 3), BlockCopy(CopyKind.SAVE, 1, 1))
    assert executor.launch(Step(1, (), copies=saves)).result().samples == ()
    spoil = Row(SeqId(1), 0, [5] * 2 * BLOCK, (0, 1), None)
    loads = (BlockCopy(CopyKind.LOAD, 3, 6), BlockCopy(CopyKind.LOAD, 1, 4))
    executor.launch(Step(2, (spoil,))).result()
    assert executor.launch(Step(3, (last_token((6, 4, 5)),), copies=loads)).result().samples == cold
    executor.shutdown()


def test_copies_are_done_in_order_and_before_the_rows(opened: tuple[Executor, Slots]) -> None:
    executor, _ = opened
    cold = executor.launch(Step(0, (Row(SeqId(0), 0, PROMPT, (0, 1, 2), GREEDY),))).result().samples
    # Blocks 0 and 1 change places by way of a slot, then their old places are overwritten by a row of the same step.
    moves = (
        BlockCopy(CopyKind.SAVE, 0, 0),
        BlockCopy(CopyKind.DUPLICATE, 1, 0),
        BlockCopy(CopyKind.LOAD, 0, 1),
        BlockCopy(CopyKind.DUPLICATE, 0, 6),
        BlockCopy(CopyKind.DUPLICATE, 1, 5),
    )
    spoil = Row(SeqId(9), 0, [5] * 2 * BLOCK, (0, 1), None)
    result = executor.launch(Step(1, (spoil, last_token((5, 6, 7))), copies=moves)).result()
    assert result.samples[1] == cold[0]
    executor.shutdown()


@pytest.mark.skipif(NATIVE_PROBLEM is not None, reason="no native library")
def test_a_copy_outside_the_pool_or_without_host_memory_is_refused(tmp_path: Path) -> None:
    executor, slots = open_executor("native", tmp_path)
    with pytest.raises(ValueError, match="outside the KV pool"):
        executor.launch(Step(0, (), copies=(BlockCopy(CopyKind.SAVE, 8, 0),))).result()
    slots._slots[0] = slots._slots[0][:-4]
    with pytest.raises(ValueError, match="host slot 0 has"):
        executor.launch(Step(1, (), copies=(BlockCopy(CopyKind.SAVE, 0, 0),))).result()
    executor.shutdown()
    model = UniformModel(num_blocks=1, block_size=1, vocab_size=2)
    with pytest.raises(RuntimeError, match="was given none"):
        model.launch(Step(0, (), copies=(BlockCopy(CopyKind.LOAD, 0, 0),))).result()
