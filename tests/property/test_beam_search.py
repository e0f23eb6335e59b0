"""Beam search among other sequences, in tiny pools, against a plain search that knows no blocks and no neighbours."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.delta import FinishReason
from headrace.core.errors import InvalidRequest
from headrace.core.request import BeamParams, Request, RequestId, SamplingParams, SeqId, StopRules
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, SequenceEvent, sequences_of
from headrace.testing import UniformModel, next_token, token_logprob

VOCAB = 11


class Found(NamedTuple):
    score: float
    tokens: tuple[int, ...]
    finish: FinishReason


def search_alone(request: Request, max_len: int) -> list[Found]:
    """The answers by the textbook: all continuations of all beams, sorted, each round."""
    beam = request.beam
    assert beam is not None
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    found: list[Found] = []

    def score(logprob: float, output: tuple[int, ...]) -> float:
        return logprob / len(output) ** beam.length_penalty

    while True:
        every = [
            (-(logprob + token_logprob([*request.prompt, *output], token)), index, token)
            for index, (logprob, output) in enumerate(beams)
            for token in range(VOCAB)
        ]
        every.sort()
        num_output = len(beams[0][1])
        following = []
        for rank, (loss, index, token) in enumerate(every):
            output = (*beams[index][1], token)
            if token in request.stop.stop_token_ids:
                if rank < beam.width and num_output >= request.sampling.min_tokens:
                    found.append(Found(score(-loss, output), output, FinishReason.STOP))
            elif len(following) < beam.width:
                following.append((-loss, output, index))
            if len(following) == beam.width:
                break
        found.sort(key=lambda answer: -answer.score)
        del found[beam.width :]
        best = score(following[0][0], following[0][1])
        if len(found) == beam.width and (beam.early_stopping or found[-1].score >= best):
            return found[: request.n]
        if len(request.prompt) + num_output + 1 >= max_len:
            found += [Found(score(p, output), output, FinishReason.LENGTH) for p, output, _ in following]
            found.sort(key=lambda answer: -answer.score)
            return found[: request.n]
        beams = place([(p, output, parent) for p, output, parent in following])


def place(following: list[tuple[float, tuple[int, ...], int]]) -> list[tuple[float, tuple[int, ...]]]:
    """Number the next beams as the search does: the first child of a beam keeps its number. It decides ties only."""
    stay: dict[int, tuple[float, tuple[int, ...]]] = {}
    others = []
    for logprob, output, parent in following:
        if parent in stay:
            others.append((logprob, output))
        else:
            stay[parent] = (logprob, output)
    vacant = [index for index in range(len(following)) if index not in stay]
    placed = {**stay, **dict(zip(vacant, others, strict=True))}
    return [placed[index] for index in range(len(following))]


@st.composite
def searches(draw: st.DrawFn) -> Request:
    width = draw(st.integers(1, 4))
    prompt = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9))
    return Request(
        request_id=RequestId("r"),
        model="m",
        prompt=tuple(prompt),
        sampling=SamplingParams(temperature=0.0, min_tokens=draw(st.integers(0, 2))),
        stop=StopRules(
            max_tokens=draw(st.integers(1, 8)),
            stop_token_ids=draw(st.frozensets(st.integers(0, VOCAB - 1), max_size=3)),
        ),
        n=draw(st.integers(1, width)),
        beam=BeamParams(
            width=width,
            length_penalty=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
            early_stopping=draw(st.booleans()),
        ),
    )


def ordinary(prompt: list[int], max_tokens: int) -> Request:
    return Request(
        request_id=RequestId("o"),
        model="m",
        prompt=tuple(prompt),
        sampling=SamplingParams(seed=5),
        stop=StopRules(max_tokens=max_tokens),
    )


def drawn_alone(request: Request) -> list[int]:
    tokens = list(request.prompt)
    sampling = sequences_of(request, 0)[0].sampling
    for _ in range(request.stop.max_tokens):
        tokens.append(next_token(tokens, sampling, VOCAB))
    return tokens[len(request.prompt) :]


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(
        searches() | st.builds(ordinary, st.lists(st.integers(0, 10), min_size=1, max_size=9), st.integers(1, 9)),
        min_size=1,
        max_size=5,
    ),
    block_size=st.sampled_from([1, 2, 4]),
    num_blocks=st.integers(20, 60),
    step_tokens=st.integers(4, 24),
    prefix_cache=st.booleans(),
    depth=st.integers(1, 2),
    plans_ahead=st.booleans(),
    aborted=st.sets(st.integers(0, 4), max_size=2),
    after=st.integers(0, 12),
)
def test_searches_find_what_they_would_find_alone_and_nothing_leaks(
    requests: list[Request],
    block_size: int,
    num_blocks: int,
    step_tokens: int,
    prefix_cache: bool,
    depth: int,
    plans_ahead: bool,
    aborted: set[int],
    after: int,
) -> None:
    limits = SchedulerLimits(
        max_num_seqs=6,
        max_step_tokens=step_tokens,
        max_context=18,
        max_waiting=64,
        prefix_cache=prefix_cache,
        plans_ahead=plans_ahead,
    )
    scheduler = Scheduler(BlockPool(num_blocks), block_size, limits)
    model = UniformModel(num_blocks=num_blocks, block_size=block_size, vocab_size=VOCAB)
    first_ids: list[int | None] = []
    next_id = 0
    for request in requests:
        sequences = sequences_of(request, next_id)
        if request.beam is not None:
            try:
                scheduler.check_search(sequences[0])
            except InvalidRequest:
                first_ids.append(None)
                continue
        for sequence in sequences:
            scheduler.submit(sequence)
        scheduler.check()
        first_ids.append(next_id)
        next_id += len(sequences)
    events: dict[int, list[SequenceEvent]] = {}
    pending: deque = deque()
    num_steps = 0

    def take(found: list[SequenceEvent]) -> None:
        for event in found:
            earlier = events.setdefault(event.seq_id, [])
            assert not earlier or earlier[-1].finish is None, "an event after the end"
            earlier.append(event)

    while scheduler.has_work or pending:
        if num_steps == after:
            for place_ in aborted:
                if place_ < len(requests) and (first := first_ids[place_]) is not None:
                    # One answer of a search takes the others along; those of a request that draws end one by one.
                    one = requests[place_].beam is not None
                    for seq_id in range(first, first + (1 if one else requests[place_].n)):
                        take(scheduler.abort(SeqId(seq_id + (after % requests[place_].n if one else 0))))
                        scheduler.check()
        while len(pending) < depth and (step := scheduler.schedule(0.0)) is not None:
            pending.append((step, model.launch(step)))
            scheduler.check()
        if not pending:
            assert not scheduler.has_work, "sequences are live and no step can be made"
            break
        step, result = pending.popleft()
        take(scheduler.commit(step, result.result(), 0.0))
        scheduler.check()
        num_steps += 1
    assert scheduler.num_free_blocks == num_blocks
    for place_, (request, first) in enumerate(zip(requests, first_ids, strict=True)):
        if first is None:
            continue
        ends = [events[first + index][-1] for index in range(request.n)]
        assert all(end.finish is not None for end in ends)
        if place_ in aborted and any(end.finish is FinishReason.ABORT for end in ends):
            assert request.beam is None or all(end.finish is FinishReason.ABORT for end in ends)
            continue
        if request.beam is None:
            assert [event.sample.token_id for event in events[first] if event.sample] == drawn_alone(request)
        else:
            max_len = min(len(request.prompt) + request.stop.max_tokens, scheduler.max_context)
            assert [(end.tokens, end.finish) for end in ends] == [
                (answer.tokens, answer.finish) for answer in search_alone(request, max_len)
            ]


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    limits = SchedulerLimits(max_num_seqs=4, max_step_tokens=16, max_context=64, max_waiting=8)
    scheduler = Scheduler(BlockPool(8), 4, limits)
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt=(1, 2, 3, 4, 5),
        sampling=SamplingParams(),
        stop=StopRules(max_tokens=20),
        beam=BeamParams(width=3),
    )
    with pytest.raises(InvalidRequest, match=r"3 beams of up to 25 tokens may want 19 blocks of 4 tokens; .* has 8"):
        scheduler.check_search(sequences_of(request, 0)[0])


def test_an_ordinary_sequence_survives_a_search_that_fills_the_pool() -> None:
    """The search has all of the pool reserved but a few blocks; the other waits for one, and nobody is lost."""
    limits = SchedulerLimits(max_num_seqs=6, max_step_tokens=32, max_context=24, max_waiting=8)
    scheduler = Scheduler(BlockPool(22), 2, limits)
    model = UniformModel(num_blocks=22, block_size=2, vocab_size=VOCAB)
    other = ordinary([1, 2, 3], 9)
    search = Request(
        request_id=RequestId("r"),
        model="m",
        prompt=(1, 2, 3),
        sampling=SamplingParams(),
        stop=StopRules(max_tokens=8),
        beam=BeamParams(width=4),
    )
    scheduler.submit(sequences_of(other, 0)[0])
    for sequence in sequences_of(search, 1):
        scheduler.submit(sequence)
    output: dict[int, list[int]] = {}
    while (step := scheduler.schedule(0.0)) is not None:
        for event in scheduler.commit(step, model.launch(step).result(), 0.0):
            tokens = event.tokens or ((event.sample.token_id,) if event.sample is not None else ())
            output.setdefault(event.seq_id, []).extend(tokens)
        scheduler.check()
    assert not scheduler.has_work
    assert output[0] == drawn_alone(other)
    assert tuple(output[1]) == search_alone(search, 11)[0].tokens
