"""Whole steps: the cuda executor's tokens are those of the reference, in every family, form, batch and chunking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from headrace.core.errors import ConfigError, EngineDead
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import Quantization
from headrace.core.step import BlockCopy, CopyKind, Row, Step
from headrace.executor import ReferenceExecutor
from headrace.executor.cuda import load_weights, model
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.executor.cuda.forms import FormChoice
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.cuda.linear import Squares, linear
from headrace.quant.formats import Format
from headrace.testing.checkpoints import Family, write_checkpoint
from tests.parity.drive import scored_step

BLOCKS, BLOCK_SIZE = 40, 16
GREEDY = SamplingParams(temperature=0.0)
LENGTHS = (1, 9, 18)


def cuda(path: Path, device: str, *, host: object = None, **options: object) -> CudaExecutor:
    given = {"device": device, "dtype": "float32", "max_rows": 4, **options}
    with open_checkpoint(path) as checkpoint:
        return CudaExecutor(
            build_program(checkpoint.config),
            checkpoint,
            num_blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            options=DeviceOptions(**given),  # type: ignore[arg-type]
            host=host,  # type: ignore[arg-type]
        )


def reference(path: Path) -> ReferenceExecutor:
    with open_checkpoint(path) as checkpoint:
        return ReferenceExecutor(build_program(checkpoint.config), checkpoint, num_blocks=BLOCKS, block_size=BLOCK_SIZE)


def prompts(seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, length).tolist() for length in lengths]


def generate(
    executor: CudaExecutor | ReferenceExecutor,
    texts: list[list[int]],
    count: int,
    *,
    chunk: int = 64,
    params: SamplingParams = GREEDY,
) -> list[list[int]]:
    """Prefill in chunks, decode side by side; rows begin to decode as soon as their prompt is done."""
    order = np.random.RandomState(len(texts)).permutation(BLOCKS).tolist()
    per_row = BLOCKS // len(texts)
    blocks = [tuple(order[i * per_row : (i + 1) * per_row]) for i in range(len(texts))]
    whole = [list(text) for text in texts]
    done = [0] * len(texts)
    step_id = 0
    while any(len(whole[i]) < len(texts[i]) + count for i in range(len(texts))):
        rows = []
        for i, text in enumerate(whole):
            num_output = len(text) - len(texts[i])
            if num_output == count:
                continue
            stop = min(done[i] + chunk, len(text))
            needed = -(-stop // BLOCK_SIZE)
            rows.append(
                Row(
                    seq_id=SeqId(i),
                    start=done[i],
                    tokens=tuple(text[done[i] : stop]),
                    blocks=blocks[i][:needed],
                    sampling=params if stop == len(text) else None,
                    num_output=num_output,
                    history=tuple(text),
                    prompt_len=len(texts[i]),
                )
            )
            done[i] = stop
        result = executor.launch(Step(step_id, tuple(rows))).result()
        assert not result.failures
        for row, sample in zip(rows, result.samples, strict=True):
            if sample is not None:
                whole[row.seq_id].append(sample.token_id)
        step_id += 1
    return [text[len(prompt) :] for text, prompt in zip(whole, texts, strict=True)]


@pytest.mark.parametrize("family", ["gemma3", "llama3", "mistral", "qwen2", "qwen3-yarn"])
def test_greedy_tokens_are_those_of_the_reference(tmp_path: Path, device: str, family: Family) -> None:
    path = write_checkpoint(tmp_path / family, family)
    executor = cuda(path, device)
    expected = generate(reference(path), prompts(1), 3, chunk=10)
    assert generate(executor, prompts(1), 3, chunk=10) == expected
    executor.shutdown()


def test_sampled_tokens_are_those_of_the_reference(tmp_path: Path, device: str) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    params = SamplingParams(temperature=1.3, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=7)
    executor = cuda(path, device)
    assert generate(executor, prompts(2, (1, 9)), 3, params=params) == generate(
        reference(path), prompts(2, (1, 9)), 3, params=params
    )
    typical = SamplingParams(temperature=1.3, typical_p=0.6, presence_penalty=0.4, seed=9)
    assert generate(executor, prompts(3, (3, 5)), 2, params=typical) == generate(
        reference(path), prompts(3, (3, 5)), 2, params=typical
    )
    executor.shutdown()


@pytest.mark.parametrize("quantization", ["bf16", "int8", "int4", "fp8"])
def test_bf16_activations_and_every_form_stay_near_the_reference(
    tmp_path: Path, device: str, quantization: str
) -> None:
    path = write_checkpoint(tmp_path / "qwen3", "qwen3")
    step = scored_step(prompts(3, (30,))[0], 3)
    expected = reference(path).launch(step).result()
    executor = cuda(path, device, dtype="bfloat16", quantization=quantization)
    result = executor.launch(step).result()
    executor.shutdown()
    assert result.failures == {}
    pairs = list(zip(result.scored[0], expected.scored[0], strict=True))
    assert len(pairs) == 29
    # What rounding to 4 bits loses shows most: these sharp little models have weights without any redundancy.
    limit = {"bf16": 0.05, "int8": 0.08, "int4": 0.8, "fp8": 0.3}[quantization]
    assert np.mean([abs(a.logprob - b.logprob) for a, b in pairs]) < limit
    assert all(len(a.top) == 3 for a, _ in pairs)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_more_than_64_tokens_are_multiplied_with_packed_weights_where_all_of_them_are(
    tmp_path: Path, device: str, is_mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "qwen3", "qwen3", num_hidden_layers=1)
    choose, products = load_weights.choose_form, model.long_linear
    widths: list[int] = []

    def chosen(stored: Sequence[Format], quantization: Quantization, k: int) -> FormChoice:
        return FormChoice("dense") if is_mixed and k == 96 else choose(stored, quantization, k)

    def counted(x: torch.Tensor, *args: object) -> None:
        widths.append(x.shape[1])
        products(x, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(load_weights, "choose_form", chosen)
    monkeypatch.setattr(model, "long_linear", counted)
    row = Row(SeqId(0), 0, tuple(prompts(3, (66,))[0]), (0, 1, 2, 3, 4), None, score=((40, 5), (65, 7)))
    expected = reference(path).launch(Step(0, (row,))).result().scored[0]
    executor = cuda(path, device, dtype="bfloat16", quantization="int8")
    found = executor.launch(Step(0, (row,))).result().scored[0]
    executor.shutdown()
    assert len(widths) == is_mixed  # of queries, keys and values: behind the last attention two tokens go on
    assert np.mean([abs(a.logprob - b.logprob) for a, b in zip(found, expected, strict=True)]) < 0.08


def test_invariant_logits_are_the_same_in_any_chunking_and_company(tmp_path: Path, device: str) -> None:
    path = write_checkpoint(tmp_path / "mistral", "mistral", num_hidden_layers=1)
    executor = cuda(path, device, dtype="bfloat16", is_invariant=True)
    first, second = prompts(4, (15, 4))
    alone = executor.logits(Step(0, (Row(SeqId(0), 0, tuple(first), (3,), None),)))
    parts = []
    for start, stop in ((0, 6), (6, 15)):
        mine = Row(SeqId(1), start, tuple(first[start:stop]), (9,), None)
        other = Row(SeqId(2), 0, tuple(second), (5,), None)
        parts.append(executor.logits(Step(1, (other, mine)))[len(second) :])
    executor.shutdown()
    # On a GPU to the bit. The interpreter multiplies with numpy, whose sums depend on a row's place in its tile.
    error = 0.0 if device == "cuda" else 1e-5
    np.testing.assert_allclose(np.concatenate(parts), alone, rtol=error, atol=error)


def test_a_token_without_an_embedding_and_broken_numbers_fail_their_row_alone(tmp_path: Path, device: str) -> None:
    executor = cuda(write_checkpoint(tmp_path / "llama", "llama"), device)
    rows = (
        Row(SeqId(1), 0, (5, 6), (0,), GREEDY),
        Row(SeqId(2), 0, (5, 99_999), (1,), GREEDY),
        Row(SeqId(3), 0, (5,), (2,), None, score=((0, 99_999),)),
    )
    result = executor.launch(Step(0, rows)).result()
    executor.shutdown()
    assert set(result.failures) == {2, 3}
    assert result.samples[0] is not None
    assert result.samples[1:] == (None, None)
    assert "99999" in result.failures[SeqId(2)]


class Host:
    """Two slots of host memory."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.memory = bytearray(2 * num_bytes)

    def whole(self) -> memoryview:
        return memoryview(self.memory)

    def slot(self, index: int) -> memoryview:
        return self.whole()[index * self.num_bytes : (index + 1) * self.num_bytes]


def test_blocks_are_saved_loaded_and_duplicated(tmp_path: Path, device: str) -> None:
    path = write_checkpoint(tmp_path / "qwen2", "qwen2")
    with open_checkpoint(path) as checkpoint:
        layers = build_program(checkpoint.config).cache_layers
    num_bytes = sum(2 * layer.kv_heads * layer.head_dim * BLOCK_SIZE * 4 for layer in layers)
    host = Host(num_bytes)
    executor = cuda(path, device, host=host)
    prompt = prompts(5, (BLOCK_SIZE,))[0]
    executor.launch(Step(0, (Row(SeqId(0), 0, tuple(prompt), (7,), None),))).result()
    expected = executor.launch(Step(1, (Row(SeqId(0), BLOCK_SIZE, (9,), (7, 8), GREEDY),))).result().samples
    copies = (
        BlockCopy(CopyKind.SAVE, 7, 1),
        BlockCopy(CopyKind.LOAD, 1, 20),
        BlockCopy(CopyKind.DUPLICATE, 20, 21),
    )
    again = Row(SeqId(4), BLOCK_SIZE, (9,), (21, 22), GREEDY)
    assert executor.launch(Step(2, (again,), copies=copies)).result().samples == expected
    assert executor.launch(Step(3, (), copies=copies)).result().samples == ()
    executor.shutdown()


def test_warming_up_goes_through_every_batch_and_changes_no_answer(tmp_path: Path, device: str) -> None:
    path = write_checkpoint(tmp_path / "llama3", "llama3", num_hidden_layers=1)
    shares: list[float] = []
    with open_checkpoint(path) as checkpoint:
        executor = CudaExecutor(
            build_program(checkpoint.config),
            checkpoint,
            num_blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            options=DeviceOptions(device=device, dtype="float32", max_rows=3, max_step_tokens=20, is_warmed=True),
            advance=shares.append,
        )
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert executor.num_graphs == (8 if device == "cuda" else 0)  # 1, 2 and 3 rows twice; 16 and 20 tokens
    assert generate(executor, prompts(1), 3, chunk=10) == generate(reference(path), prompts(1), 3, chunk=10)
    executor.shutdown()


def test_scores_of_many_positions_are_those_of_few(tmp_path: Path, device: str) -> None:
    path = write_checkpoint(tmp_path / "qwen2", "qwen2")
    step = scored_step(prompts(6, (90,))[0], 2)  # more than one piece of logits
    expected = reference(path).launch(step).result().scored[0]
    executor = cuda(path, device)
    found = executor.launch(step).result().scored[0]
    executor.shutdown()
    assert [s.token_id for s in found] == [s.token_id for s in expected]
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in expected], atol=1e-3)


def test_behind_the_last_attention_only_tokens_that_somebody_asks_about_go_on(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1)
    executor = cuda(path, device)
    prompt = tuple(prompts(7, (12,))[0])
    filling = Row(SeqId(0), 0, prompt, (1,), None)
    rows = (
        filling,
        Row(SeqId(1), 0, prompt, (2,), GREEDY, score=((3, 5), (11, 9))),
        Row(SeqId(2), 0, (7,), (3,), GREEDY),
    )
    expected = reference(path).launch(Step(0, rows)).result()
    counts: list[int] = []

    def counted(x: torch.Tensor, *args: object, **options: object) -> Squares | None:
        counts.append(len(x))
        return linear(x, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "linear", counted)
    result = executor.launch(Step(0, rows)).result()
    assert counts[0] == 25
    assert counts[1:-2] == [3] * len(counts[1:-2])  # the ends of two rows, one of them scored as well, and one more
    assert counts[-2:] == [2, 2]  # logits to sample from, and to score
    assert result.samples == expected.samples
    assert [s.logprob for s in result.scored[1]] == pytest.approx([s.logprob for s in expected.scored[1]], abs=1e-4)
    counts.clear()
    assert executor.launch(Step(1, (filling,))).result().samples == (None,)
    assert counts == [12]
    executor.shutdown()


def test_the_last_norm_of_few_tokens_costs_no_launch(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "qwen3", "qwen3", num_hidden_layers=2)
    expected = generate(reference(path), prompts(1), 3)
    taken: list[bool] = []

    def noted(*args: object, squares: Squares | None = None, **options: object) -> Squares | None:
        taken.append(squares is not None)
        return linear(*args, squares=squares, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "linear", noted)
    executor = cuda(path, device)
    assert generate(executor, prompts(1), 3) == expected
    assert taken[-1]  # the head's
    # Where only some of the tokens go on to the head, the norm is done before.
    executor.launch(scored_step(prompts(6, (12,))[0], 2)).result()
    assert not taken[-1]
    executor.shutdown()


def test_two_steps_may_be_pending(tmp_path: Path, device: str) -> None:
    executor = cuda(write_checkpoint(tmp_path / "llama", "llama"), device)
    first = executor.launch(Step(0, (Row(SeqId(1), 0, (5, 6), (0,), GREEDY),)))
    second = executor.launch(Step(1, (Row(SeqId(2), 0, (8,), (1,), GREEDY),)))
    alone = executor.launch(Step(2, (Row(SeqId(3), 0, (5, 6), (2,), GREEDY),))).result()
    assert first.result().samples == alone.samples
    assert second.result().step_id == 1
    executor.shutdown()


def test_what_cannot_be_run_is_refused(tmp_path: Path, device: str) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    with pytest.raises(ConfigError, match="dtype is 'float8'"):
        cuda(path, device, dtype="float8")
    executor = cuda(path, device, max_step_tokens=32)
    row = Row(SeqId(1), 0, (1,), (0,), GREEDY)
    with pytest.raises(ValueError, match="a step of 40 tokens"):
        executor.launch(Step(0, (msgspec.structs.replace(row, tokens=(1,) * 40, blocks=(0, 1, 2)),)))
    with pytest.raises(ValueError, match="in 1 blocks"):
        executor.launch(Step(0, (msgspec.structs.replace(row, start=16),)))
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(EngineDead):
        executor.launch(Step(0, (row,)))
