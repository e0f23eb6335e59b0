"""The native sampler draws the token that the numpy sampler draws, for any parameters and any ties."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row
from headrace.executor.step_arrays import sampling_record
from headrace.sampling import sample_rows, score_token
from tests.parity.native_drive import ISAS, forced, needs_native

pytestmark = needs_native
ops = pytest.importorskip("headrace.ops.native.ops", reason="no native library")


def random_logits(random: np.random.Generator) -> NDArray[np.float32]:
    """Logits of any spread: flat, peaked, full of ties."""
    vocab = int(random.choice([1, 2, 17, 100, 1000, 6000]))
    logits = random.standard_normal(vocab) * float(random.choice([0.0, 0.1, 1.0, 5.0]))
    if random.random() < 0.4:
        logits = np.round(logits * 2) / 2
    if random.random() < 0.1:
        logits[random.random(vocab) < 0.5] = -np.inf
        logits[0] = 0.0
    return logits.astype(np.float32)


def random_params(random: np.random.Generator, vocab: int) -> SamplingParams:
    """Any mix of filters and penalties."""
    pick = random.choice
    penalizes = random.random() < 0.3
    biases = tuple((int(random.integers(vocab)), value) for value in (5.0, -7.5, 0.3))
    return SamplingParams(
        temperature=float(pick([0.0, 0.2, 0.7, 1.0, 3.0])),
        top_k=int(pick([0, 0, 1, 3, 40, 700, 10**6])),
        top_p=float(pick([1.0, 1.0, 0.95, 0.5, 0.01])),
        min_p=float(pick([0.0, 0.0, 0.02, 0.5])),
        typical_p=float(pick([1.0, 1.0, 1.0, 0.6])),
        repetition_penalty=1.3 if penalizes else 1.0,
        frequency_penalty=0.37 if penalizes else 0.0,
        presence_penalty=-0.21 if penalizes else 0.0,
        logit_bias=biases if random.random() < 0.3 else (),
        seed=int(random.integers(-(2**63), 2**63)),
        logprobs=int(pick([0, 3, 20])),
    )


def drawn_natively(logits: NDArray[np.float32], row: Row) -> np.void:
    """Draw with the native sampler what the row asks for."""
    params = row.sampling
    assert params is not None
    record: np.void = ops.sample_row(
        logits,
        sampling_record(params, len(logits)),
        num_output=row.num_output,
        history=row.history or (),
        prompt_len=row.prompt_len,
        banned=row.banned,
        bias=params.logit_bias,
    )
    return record


@pytest.mark.parametrize("isa", ISAS)
def test_every_draw_equals_the_numpy_samplers(isa: str) -> None:
    random = np.random.default_rng(20)
    with forced(isa):
        for trial in range(250):
            logits = random_logits(random)
            params = random_params(random, len(logits))
            history = tuple(random.integers(0, len(logits), 30).tolist())
            row = Row(
                seq_id=SeqId(0),
                start=0,
                tokens=(0,),
                blocks=(0,),
                sampling=params,
                num_output=trial,
                prompt_len=12,
                history=history if params.needs_history else None,
                banned=tuple(random.integers(0, len(logits), 2).tolist()) if trial % 5 == 0 else (),
            )
            expected = sample_rows(logits[None], [row])[0]
            got = drawn_natively(logits, row)
            if isinstance(expected, str):
                assert got["status"] == 2, (trial, expected)
                continue
            assert got["token"] == expected.token_id, (trial, params)
            assert got["logprob"] == pytest.approx(expected.logprob, abs=1e-5)
            count = int(got["num_top"])
            assert got["top_ids"][:count].tolist() == [token for token, _ in expected.top]
            assert got["top_logprobs"][:count] == pytest.approx([value for _, value in expected.top], abs=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_draws_follow_the_distribution(isa: str) -> None:
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(weights).astype(np.float32)
    counts = np.zeros(4)
    with forced(isa):
        for number in range(4000):
            row = Row(
                seq_id=SeqId(0),
                start=0,
                tokens=(0,),
                blocks=(0,),
                sampling=SamplingParams(temperature=1.0, seed=7),
                num_output=number,
            )
            counts[drawn_natively(logits, row)["token"]] += 1
    np.testing.assert_allclose(counts / 4000, weights, atol=0.03)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 57, 99])
def test_logits_that_are_not_finite_fail_the_row(isa: str, bad: float, place: int) -> None:
    logits = np.zeros(100, np.float32)
    logits[place] = bad
    row = Row(seq_id=SeqId(0), start=0, tokens=(0,), blocks=(0,), sampling=SamplingParams(temperature=0.0))
    with forced(isa):
        assert drawn_natively(logits, row)["status"] == 1
        assert drawn_natively(np.full(100, -np.inf, np.float32), row)["status"] == 1


@pytest.mark.parametrize("isa", ISAS)
def test_scored_tokens_match_the_numpy_scorer(isa: str) -> None:
    random = np.random.default_rng(3)
    with forced(isa):
        for _ in range(20):
            logits = random_logits(random)
            token = int(random.integers(len(logits)))
            expected = score_token(logits, token, 4)
            got = ops.score_row(logits, token, num_top=4)
            assert got["logprob"] == pytest.approx(expected.logprob, abs=1e-5)
            assert got["top_ids"][: got["num_top"]].tolist() == [best for best, _ in expected.top]
