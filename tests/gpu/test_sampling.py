"""Draws on the device against the sampler that is the specification: the same seed draws the same token."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample
from headrace.sampling import sample_rows, score_token
from tests.gpu.drive import drawn, scored


def row(seq: int, params: SamplingParams, **options: object) -> Row:
    return Row(SeqId(seq), 0, (1,), (0,), params, **options)  # type: ignore[arg-type]


FILTERS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=30.0),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.5, top_k=7),
    SamplingParams(temperature=1.0, top_k=500),
    SamplingParams(temperature=1.0, top_p=0.5),
    SamplingParams(temperature=2.0, top_p=0.95),
    SamplingParams(temperature=9.0, top_p=0.99),
    SamplingParams(temperature=1.0, top_p=1e-9),
    SamplingParams(temperature=1.0, min_p=0.1),
    SamplingParams(temperature=3.0, min_p=0.001),
    SamplingParams(temperature=1.0, min_p=1.0),
    SamplingParams(temperature=1.2, top_k=50, top_p=0.8, min_p=0.02),
    SamplingParams(temperature=1.2, top_k=3, top_p=0.999),
    SamplingParams(temperature=1.0, typical_p=0.7),
    SamplingParams(temperature=1.0, typical_p=0.4, top_k=30, top_p=0.9),
]


@pytest.mark.parametrize(
    ("params", "kind"), [(params, "smooth") for params in FILTERS] + [(params, "ties") for params in FILTERS[1::3]]
)
def test_every_filter_draws_what_the_reference_draws(device: str, params: SamplingParams, kind: str) -> None:
    random = np.random.RandomState(3)
    logits = (random.standard_normal((4, 600)) * 3).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits)
    rows = [row(i, msgspec.structs.replace(params, seed=i * 2654435761 * 97 + 5), num_output=i * 3) for i in range(4)]
    expected = [sample.token_id for sample in sample_rows(logits, rows) if isinstance(sample, Sample)]
    assert [sample.token_id for sample in drawn(device, logits, rows) if isinstance(sample, Sample)] == expected


def test_penalties_biases_and_bans_are_applied(device: str) -> None:
    random = np.random.RandomState(0)
    logits = random.standard_normal((4, 300)).astype(np.float32)
    history = random.randint(0, 300, 80).tolist()
    best = int(logits[3].argmax())
    rows = [
        row(0, SamplingParams(repetition_penalty=1.7, seed=1), history=history, prompt_len=40),
        row(1, SamplingParams(presence_penalty=1.5, frequency_penalty=0.7, seed=2), history=history, prompt_len=40),
        row(2, SamplingParams(temperature=0.0, logit_bias=((17, 50.0), (18, 49.0))), banned=(17,)),
        row(3, SamplingParams(temperature=0.0, logprobs=3), banned=(best,)),
    ]
    expected = sample_rows(logits, rows)
    result = drawn(device, logits, rows)
    assert [s.token_id for s in result if isinstance(s, Sample)] == [s.token_id for s in expected]  # type: ignore[union-attr]
    last, known = result[3], expected[3]
    assert isinstance(last, Sample)
    assert isinstance(known, Sample)
    assert [i for i, _ in last.top] == [i for i, _ in known.top]
    assert last.top[0][0] == best  # log probabilities are those of the model, not of what bans leave


def test_log_probabilities_and_ranks_are_those_of_the_reference(device: str) -> None:
    random = np.random.RandomState(0)
    logits = np.round(random.standard_normal((3, 200)) * 2, 1).astype(np.float32)  # with ties
    rows = [row(i, SamplingParams(seed=i, logprobs=n)) for i, n in enumerate((0, 5, 20))]
    for sample, known in zip(drawn(device, logits, rows), sample_rows(logits, rows), strict=True):
        assert isinstance(sample, Sample)
        assert isinstance(known, Sample)
        assert sample.token_id == known.token_id
        assert sample.logprob == pytest.approx(known.logprob, abs=1e-9)
        assert [i for i, _ in sample.top] == [i for i, _ in known.top]
        assert [p for _, p in sample.top] == pytest.approx([p for _, p in known.top], abs=1e-9)


def test_a_known_token_is_scored(device: str) -> None:
    logits = np.random.RandomState(0).standard_normal((2, 100)).astype(np.float32)
    result = scored(device, logits, [7, 99], 4)
    for line, token, position in zip(logits, (7, 99), result, strict=True):
        known = score_token(line, token, 4)
        assert position is not None
        assert position.logprob == pytest.approx(known.logprob, abs=1e-9)
        assert [i for i, _ in position.top] == [i for i, _ in known.top]


def test_broken_and_empty_rows_fail_alone(device: str) -> None:
    logits = np.random.RandomState(0).standard_normal((5, 64)).astype(np.float32)
    logits[0, 3] = np.nan
    logits[1, 3] = np.inf
    logits[2] = -np.inf
    params = SamplingParams(temperature=0.0)
    rows = [row(i, params) for i in range(3)] + [row(3, params, banned=tuple(range(64))), row(4, params)]
    result = drawn(device, logits, rows)
    assert [isinstance(item, str) for item in result] == [True, True, True, True, False]
    assert "banned" in str(result[3])
