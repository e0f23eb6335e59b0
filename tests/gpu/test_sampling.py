"""Draws on the device against the sampler that is the specification: the same seed draws the same token."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton.runtime.errors import PTXASError

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample
from headrace.ops.cuda import launching, sampling
from headrace.sampling import MAX_ALTERNATIVES, sample_rows, score_token
from tests.gpu.drive import drawn, scored

LONG = 66_000  # tokens: the longest segments, and the last one is not full
SEGMENT = 4096
GREEDY = SamplingParams(temperature=0.0)


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


def tokens(samples: list[Sample | str]) -> list[int | str]:
    return [sample.token_id if isinstance(sample, Sample) else sample for sample in samples]


def long_row(seed: int) -> NDArray[np.float32]:
    return (np.random.RandomState(seed).standard_normal((1, LONG)) * 4).astype(np.float32)


def test_rows_of_many_segments_draw_what_the_reference_draws(device: str) -> None:
    assert sampling.segment_length(LONG) == SEGMENT
    logits = np.concatenate([long_row(0), np.round(long_row(1)), long_row(2), long_row(2) - 1000])
    logits[3, 5 * SEGMENT : 7 * SEGMENT] = -np.inf  # segments with nothing in them
    params = [
        SamplingParams(temperature=0.8, top_p=0.9, seed=1),
        SamplingParams(temperature=1.1, top_k=3000, seed=2, logprobs=20),
        SamplingParams(temperature=1.0, seed=3),
        SamplingParams(temperature=0.7, min_p=0.01, seed=4),
    ]
    rows = [row(i, given, num_output=i) for i, given in enumerate(params)]
    found, expected = drawn(device, logits, rows), sample_rows(logits, rows)
    assert tokens(found) == tokens(expected)
    best, known = found[1], expected[1]
    assert isinstance(best, Sample)
    assert isinstance(known, Sample)
    assert best.logprob == pytest.approx(known.logprob, abs=1e-9)
    assert [i for i, _ in best.top] == [i for i, _ in known.top]


def test_the_lowest_of_equal_tokens_is_taken_whatever_segment_it_is_in(device: str) -> None:
    logits = np.minimum(long_row(0), 9)
    logits[0, [SEGMENT - 1, SEGMENT, 9 * SEGMENT, LONG - 1]] = 20.0
    logits = np.repeat(logits, 4, axis=0)
    logits[1, SEGMENT - 1] = 0.0
    greedy = SamplingParams(temperature=0.0, logprobs=5)
    third = SamplingParams(temperature=1e-3, seed=5)  # one of the four: which one is the seed's
    rows = [row(0, greedy), row(1, greedy), row(2, SamplingParams(temperature=1.0, top_k=1)), row(3, third)]
    found = drawn(device, logits, rows)
    assert tokens(found) == [SEGMENT - 1, SEGMENT, SEGMENT - 1, *tokens(sample_rows(logits[3:], rows[3:]))]
    assert isinstance(found[0], Sample)
    assert [i for i, _ in found[0].top[:4]] == [SEGMENT - 1, SEGMENT, 9 * SEGMENT, LONG - 1]


def test_a_row_of_equal_logits_has_every_token_as_a_candidate(device: str) -> None:
    logits = np.full((2, LONG), 1.5, np.float32)
    rows = [row(0, SamplingParams(temperature=1.0, seed=8)), row(1, SamplingParams(temperature=2.0, top_p=0.4, seed=9))]
    assert tokens(drawn(device, logits, rows)) == tokens(sample_rows(logits, rows))


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf])
def test_one_number_that_is_wrong_is_found_in_any_segment(device: str, wrong: float) -> None:
    logits = np.repeat(np.random.RandomState(0).standard_normal((1, 700)).astype(np.float32), 4, axis=0)
    for line, spot in enumerate((0, 255, 699)):
        logits[line, spot] = wrong
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, seed=1, logprobs=2)):
        rows = [row(i, params) for i in range(4)]
        found, expected = drawn(device, logits, rows), sample_rows(logits, rows)
        assert found[:3] == expected[:3]  # the same words, the largest number included
        assert tokens(found[3:]) == tokens(expected[3:])


def test_a_row_has_the_same_bits_beside_any_others(device: str) -> None:
    random = np.random.RandomState(5)
    logits = (random.standard_normal((6, 3000)) * 3).astype(np.float32)
    rows = [row(i, SamplingParams(temperature=1.0, top_p=0.8, seed=i, logprobs=4)) for i in range(6)]
    alone = [drawn(device, logits[i : i + 1], rows[i : i + 1])[0] for i in range(6)]
    assert drawn(device, logits, rows) == alone
    rows[2] = row(2, SamplingParams(temperature=0.5, seed=2, presence_penalty=1.0), history=(4, 5), prompt_len=1)
    assert drawn(device, logits, rows)[3:] == alone[3:]


def test_logits_are_as_they_were_after_adjusted_rows_have_been_drawn(device: str) -> None:
    logits = torch.from_numpy(np.random.RandomState(1).standard_normal((2, 500)).astype(np.float32))
    before = logits.clone()
    rows = [row(0, SamplingParams(temperature=1.0, seed=2, logit_bias=((3, 5.0),)), banned=(7, 8)), row(1, GREEDY)]
    drawn(device, logits.numpy(), rows)
    assert torch.equal(logits, before)


def test_numpy_draws_from_the_models_logits_when_a_kernel_does_not_compile(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_failed", {})

    class Fails:
        def __getitem__(self, grid: object) -> object:
            raise PTXASError("ptxas fatal: unknown option")

    monkeypatch.setattr(sampling, "gather", Fails())
    logits = torch.randn((1, 300))
    before = logits.clone()
    one = torch.zeros(1, dtype=torch.int32, device=device)
    lines = sampling.Lines(
        floats=torch.ones((1, sampling.NUM_FLOATS), dtype=torch.float64, device=device),
        ints=torch.tensor([[0, 0, 0, 0, -1]], dtype=torch.int32, device=device),
    )
    bias = sampling.Adjustments(lines=one, ids=one, seen=one, counts=one, biases=torch.ones(1, device=device))
    held = logits.to(device)
    assert sampling.try_draw(held, lines, bias, num_top=None) is None
    assert torch.equal(held.cpu(), before)
    assert launching.failed_kernels() == ("sampling",)
    monkeypatch.undo()


def test_as_many_alternatives_are_listed_as_the_engine_may_ask_for() -> None:
    assert sampling.MOST_TOP == MAX_ALTERNATIVES
