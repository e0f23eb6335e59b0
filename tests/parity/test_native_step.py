"""Whole native steps: against the reference executor; against themselves in every batch, chunking and thread count."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.core.errors import ConfigError, EngineDead, OutOfMemory
from headrace.core.request import Reach, SamplingParams, SeqId
from headrace.core.settings import KvDtype, Quantization
from headrace.core.step import Row, Step
from headrace.executor import ReferenceExecutor
from headrace.executor.native import NativeExecutor
from headrace.executor.weights_pack import load_weights
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.native.library import Pool
from headrace.testing.checkpoints import FAMILIES, Family, write_checkpoint, write_safetensors
from headrace.text import load_tokenizer
from tests.parity.drive import scored_step
from tests.parity.native_drive import GREEDY, ISAS, forced, generate, needs_native, tokens

pytestmark = needs_native

BLOCKS, BLOCK_SIZE = 64, 16
LENGTHS = (1, 5, 33, 70, 40)
TEXT = (
    "A headrace carries water from a stream to the wheel of a mill, and a tailrace carries it away again. "
    "In the Middle Ages there were thousands of mills in England alone. They ground grain and fulled cloth."
)


def native(path: Path, *, threads: int = 2, quantization: Quantization = "auto", **options: object) -> NativeExecutor:
    """Open an executor on a checkpoint."""
    checkpoint = open_checkpoint(path)
    try:
        return NativeExecutor(
            build_program(checkpoint.config),
            checkpoint,
            num_blocks=int(options.pop("num_blocks", BLOCKS)),  # type: ignore[call-overload]
            block_size=int(options.pop("block_size", BLOCK_SIZE)),  # type: ignore[call-overload]
            threads=threads,
            quantization=quantization,
            **options,  # type: ignore[arg-type]
        )
    finally:
        checkpoint.close()


def reference(path: Path, *, num_blocks: int = BLOCKS, kv_dtype: KvDtype = "auto") -> ReferenceExecutor:
    """Open the numpy executor on the same checkpoint."""
    checkpoint = open_checkpoint(path)
    try:
        return ReferenceExecutor(
            build_program(checkpoint.config),
            checkpoint,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            kv_dtype=kv_dtype,
        )
    finally:
        checkpoint.close()


def prompts(seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, length).tolist() for length in lengths]


def rounded(path: Path, quantization: Quantization, target: Path) -> Path:
    """Write a checkpoint whose fp32 matrices are exactly what the packed ones stand for."""
    with open_checkpoint(path) as checkpoint, Pool(1) as pool:
        program = build_program(checkpoint.config)
        weights = load_weights(program, checkpoint, pool, quantization=quantization, cache_dir=None)
        tensors = {name: checkpoint.tensor(name).to_float() for name in checkpoint.names()}
        for spec in program.weights:
            first = 0
            for part in spec.parts if len(spec.shape) == 2 else ():
                last = first + checkpoint.tensor(part).shape[0]
                tensors[part] = weights.matrices[spec.name].to_float(first, last)
                first = last
    shutil.copytree(path, target)
    write_safetensors(target / "model.safetensors", tensors)
    return target


# What is left are bf16 KV and activations (bf16: 8 bits of mantissa; int8, one scale per 32 channels): logits of these
# sharp little models move by hundredths.
@pytest.mark.parametrize(
    ("quantization", "mean_error"),
    [("bf16", 0.04), ("int8", 0.08), ("int4", 0.08), ("int4-g64", 0.08), ("int4-g128", 0.08)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_match_the_reference_on_the_same_weights(
    tmp_path: Path, family: Family, quantization: Quantization, mean_error: float
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    step = scored_step(prompts(3, (90,))[0], 5)
    expected = reference(rounded(path, quantization, tmp_path / "rounded")).launch(step).result()
    executor = native(path, quantization=quantization)
    result = executor.launch(step).result()
    executor.shutdown()
    assert result.failures == expected.failures == {}
    errors = [abs(a.logprob - b.logprob) for a, b in zip(result.scored[0], expected.scored[0], strict=True)]
    assert np.mean(errors) < mean_error
    best = [a.top[0][0] == b.top[0][0] for a, b in zip(result.scored[0], expected.scored[0], strict=True)]
    assert np.mean(best) > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_kv_matches_the_reference_with_int8_kv(tmp_path: Path, family: Family) -> None:
    path = write_checkpoint(tmp_path / family, family)
    step = scored_step(prompts(3, (90,))[0], 5)
    exact = reference(rounded(path, "bf16", tmp_path / "rounded"), kv_dtype="int8").launch(step).result()
    executor = native(path, quantization="bf16", kv_dtype="int8")
    result = executor.launch(step).result()
    executor.shutdown()
    assert result.failures == exact.failures == {}
    errors = [abs(a.logprob - b.logprob) for a, b in zip(result.scored[0], exact.scored[0], strict=True)]
    assert np.mean(errors) < 0.04  # the activations of the products are bf16; K and V round to the same integers


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("quantization", "kv_dtype"), [("bf16", "bf16"), ("int8", "bf16"), ("int4", "bf16"), ("bf16", "int8")]
)
@pytest.mark.parametrize("family", ["gemma3", "mistral", "qwen2"])
def test_every_batch_chunking_and_thread_count_gives_the_same_bits(
    tmp_path: Path, family: Family, quantization: Quantization, kv_dtype: KvDtype, isa: str
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    with forced(isa):
        one, two, three = (native(path, threads=n, quantization=quantization, kv_dtype=kv_dtype) for n in (1, 2, 3))
        expected = generate(one, prompts(0), 4)
        assert [len(samples) for samples in expected] == [4] * len(LENGTHS)
        for seed, chunk in enumerate((1, 3, 16, 64), start=1):
            assert generate(two, prompts(0), 4, chunk=chunk, seed=seed) == expected
        assert generate(three, prompts(0), 4, chunk=7, seed=9) == expected
        for i, prompt in enumerate(prompts(0)):
            assert generate(two, [prompt], 4, seed=20 + i)[0] == expected[i]
        for executor in (one, two, three):
            executor.shutdown()


def test_long_contexts_shared_out_by_chunks_of_positions_give_the_same_bits(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "gemma3", "gemma3", max_position_embeddings=2048, sliding_window=700)
    long = prompts(7, (1300, 520, 3))
    results = []
    for threads, chunk in ((1, 400), (2, 511), (3, 97)):
        executor = native(path, threads=threads, num_blocks=160, max_step_tokens=1100)
        results.append(generate(executor, long, 3, chunk=chunk, seed=threads, sampling=GREEDY))
        results.append([generate(executor, [prompt], 3, chunk=500, seed=9 + i)[0] for i, prompt in enumerate(long)])
        executor.shutdown()
    assert all(result == results[0] for result in results)


def test_sampling_with_every_filter_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    params = SamplingParams(
        temperature=1.3,
        top_p=0.9,
        min_p=0.01,
        seed=5,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        logit_bias=((7, 2.0), (9, -1.0)),
        logprobs=2,
    )
    executor = native(path)
    together = generate(executor, prompts(4), 8, chunk=16, seed=1, sampling=params)
    alone = [generate(executor, [prompt], 8, seed=2 + i, sampling=params)[0] for i, prompt in enumerate(prompts(4))]
    executor.shutdown()
    assert together == alone


def test_a_row_with_an_unknown_token_fails_alone(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    greedy = SamplingParams(temperature=0.0)
    good = Row(seq_id=SeqId(1), start=0, tokens=(1, 2, 3), blocks=(0,), sampling=greedy)
    bad = Row(seq_id=SeqId(2), start=0, tokens=(1, 260), blocks=(1,), sampling=greedy)
    off = Row(seq_id=SeqId(3), start=0, tokens=(1, 2), blocks=(2,), sampling=None, score=((0, 999),))
    executor, oracle = native(path), reference(path)
    result = executor.launch(Step(0, (good, bad, off))).result()
    expected = oracle.launch(Step(0, (good, bad, off))).result()
    executor.shutdown()
    assert result.failures == expected.failures
    assert set(result.failures) == {SeqId(2), SeqId(3)}
    assert result.samples == expected.samples
    assert result.samples[0] is not None


@pytest.mark.parametrize("kv_dtype", ["bf16", "int8"])
def test_numbers_that_overflow_fail_their_row_and_leave_the_block_usable(tmp_path: Path, kv_dtype: KvDtype) -> None:
    path = write_checkpoint(tmp_path / "llama3", "llama3")  # its output table is another tensor than the embedding
    weights = path / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    header = int.from_bytes(raw[:8], "little")
    table = np.frombuffer(raw, "<f4", count=260 * 64, offset=8 + header).copy().reshape(260, 64)
    table[77] = np.nan
    raw[8 + header : 8 + header + table.nbytes] = table.tobytes()
    weights.write_bytes(raw)
    executor = native(path, kv_dtype=kv_dtype)
    greedy = SamplingParams(temperature=0.0)
    poisoned = Row(seq_id=SeqId(1), start=0, tokens=(5, 77, 6), blocks=(0,), sampling=greedy)
    healthy = Row(seq_id=SeqId(2), start=0, tokens=(5, 6), blocks=(1,), sampling=greedy)
    first = executor.launch(Step(0, (poisoned, healthy))).result()
    assert set(first.failures) == {SeqId(1)}
    assert "not finite at position 2" in first.failures[SeqId(1)]
    again = Row(seq_id=SeqId(3), start=0, tokens=(5, 6), blocks=(0,), sampling=greedy)
    second = executor.launch(Step(1, (again,))).result()
    executor.shutdown()
    assert second.failures == {}
    assert second.samples[0] == first.samples[1]


def test_a_prompt_is_scored_like_the_tokens_it_would_sample(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "qwen3", "qwen3")
    executor = native(path)
    prompt = prompts(6, (50,))[0]
    scored = executor.launch(scored_step(prompt, 3)).result().scored[0]
    decoded = []
    for i, token in enumerate(prompt[:-1]):
        row = Row(
            seq_id=SeqId(9),
            start=i,
            tokens=(token,),
            blocks=tuple(range(10, 10 + i // BLOCK_SIZE + 1)),
            sampling=SamplingParams(temperature=0.0, logprobs=3),
        )
        sample = executor.launch(Step(i, (row,))).result().samples[0]
        assert sample is not None
        decoded.append(sample.top)
    executor.shutdown()
    assert [position.top for position in scored] == decoded


def test_logits_of_every_token_are_those_that_scoring_uses(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "gemma3", "gemma3")
    executor, oracle = native(path, quantization="bf16"), reference(path)
    step = scored_step(prompts(8, (75,))[0], 1)
    logits = executor.logits(step)
    assert logits.shape == (75, 260)
    scored = executor.launch(step).result().scored[0]
    for line, position in zip(logits, scored, strict=False):
        log_sum = np.log(np.exp(line.astype(np.float64)).sum())
        assert position.logprob == pytest.approx(line[position.token_id] - log_sum, abs=1e-5)
        assert position.top[0][0] == int(line.argmax())
    np.testing.assert_allclose(logits, oracle.logits(step), atol=0.25)
    executor.shutdown()


def test_greedy_smollm2_says_paris_alone_and_in_a_batch_of_32(smollm2_path: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    tokenizer = load_tokenizer(checkpoint.text_files)
    checkpoint.close()
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer.encode(text, add_special=False)
    others = [prompt[: 1 + i % len(prompt)] for i in range(31)]
    executor = native(smollm2_path, cache_dir=tmp_path, num_blocks=256, block_size=32)
    alone = generate(executor, [prompt], 8, seed=1)[0]
    batch = generate(executor, [prompt, *others], 8, chunk=13, seed=2)
    executor.shutdown()
    assert "Paris" in tokenizer.decode(tokens(alone))
    assert batch[0] == alone
    one = native(smollm2_path, cache_dir=tmp_path, threads=1, num_blocks=64, block_size=64)
    assert generate(one, [prompt], 8, chunk=5, seed=3)[0] == alone
    one.shutdown()


@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_real_models_stay_close_to_the_reference(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(model)
    with open_checkpoint(path) as checkpoint:
        prompt = load_tokenizer(checkpoint.text_files).encode(TEXT, add_special=True)[:48]
    step = scored_step(prompt, 20)
    expected = reference(path, num_blocks=4).launch(step).result().scored[0]
    executor = native(path, cache_dir=tmp_path, num_blocks=4)
    scored = executor.launch(step).result().scored[0]
    executor.shutdown()
    # Weights are exact, activations int8, KV bf16. KL over the reference's best 20.
    divergence = [
        sum(np.exp(p) * (p - dict(b.top).get(token, p)) for token, p in a.top)
        for a, b in zip(expected, scored, strict=True)
    ]
    assert np.mean(divergence) < 0.01
    loss = [np.mean([position.logprob for position in positions]) for positions in (expected, scored)]
    assert loss[1] == pytest.approx(loss[0], abs=0.02)


def test_what_cannot_be_run_is_refused_with_the_numbers(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    with pytest.raises(ConfigError, match="block_size is 24"):
        native(path, block_size=24)
    with pytest.raises(OutOfMemory, match=r"KV pool [0-9,]+ MiB, but only"):
        native(path, num_blocks=1 << 33)
    executor = native(path, max_step_tokens=8)
    long = Row(seq_id=SeqId(1), start=0, tokens=tuple(range(9)), blocks=(0,), sampling=None)
    with pytest.raises(ValueError, match="9 tokens; this executor was made for at most 8"):
        executor.launch(Step(0, (long,))).result()
    roomless = Row(seq_id=SeqId(1), start=15, tokens=(1, 2), blocks=(0,), sampling=None)
    with pytest.raises(ValueError, match="2 tokens ending at position 16 in 1 blocks of 16"):
        executor.launch(Step(0, (roomless,))).result()
    stray = Row(seq_id=SeqId(1), start=0, tokens=(1,), blocks=(BLOCKS,), sampling=None)
    with pytest.raises(ValueError, match="no place in its blocks"):
        executor.launch(Step(0, (stray,))).result()
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(EngineDead):
        executor.launch(Step(0, (roomless,))).result()


REACH = Reach(window=21, num_sinks=4)  # narrower than the prompts; gemma3's local layers see 8 tokens anyway


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", ["bf16", "int8"])
@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3-yarn"])
def test_sinks_and_window_give_the_same_bits_with_and_without_the_blocks_between(
    tmp_path: Path, family: Family, kv_dtype: KvDtype, isa: str
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    with forced(isa):
        one, two = (native(path, threads=n, quantization="bf16", kv_dtype=kv_dtype) for n in (1, 2))
        expected = generate(one, prompts(0), 9, reach=REACH)
        assert expected != generate(one, prompts(0), 9, seed=8)
        for seed, chunk in enumerate((1, 3, 16, 64), start=1):
            assert generate(two, prompts(0), 9, chunk=chunk, seed=seed, reach=REACH, evicts=True) == expected
        for i, prompt in enumerate(prompts(0)):
            assert generate(two, [prompt], 9, chunk=7, seed=20 + i, reach=REACH, evicts=True)[0] == expected[i]
        for executor in (one, two):
            executor.shutdown()


def test_a_sequence_runs_past_the_models_context_in_a_few_blocks(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    with open_checkpoint(path) as checkpoint:
        trained = build_program(checkpoint.config).max_positions
    executor = native(path, num_blocks=6)
    samples = generate(executor, [[5, 6, 7]], trained + 200, reach=REACH, evicts=True)[0]
    executor.shutdown()
    assert len(samples) == trained + 200


@pytest.mark.parametrize("family", FAMILIES)
def test_sinks_and_window_match_the_reference(tmp_path: Path, family: Family) -> None:
    path = write_checkpoint(tmp_path / family, family)
    step = scored_step(prompts(3, (90,))[0], 5)
    step = Step(0, (msgspec.structs.replace(step.rows[0], reach=REACH),))
    expected = reference(rounded(path, "bf16", tmp_path / "rounded")).launch(step).result()
    executor = native(path, quantization="bf16")
    result = executor.launch(step).result()
    executor.shutdown()
    errors = [abs(a.logprob - b.logprob) for a, b in zip(result.scored[0], expected.scored[0], strict=True)]
    assert np.mean(errors) < 0.04


def test_a_table_that_lacks_blocks_somebody_sees_is_refused(tmp_path: Path) -> None:
    executor = native(write_checkpoint(tmp_path / "llama", "llama"))
    row = Row(SeqId(1), 3 * BLOCK_SIZE, (5,), (0, 1, 2), None, reach=Reach(window=40, num_sinks=4), num_evicted=1)
    with pytest.raises(ValueError, match="no place in its blocks"):
        executor.launch(Step(0, (row,))).result()
    executor.shutdown()
