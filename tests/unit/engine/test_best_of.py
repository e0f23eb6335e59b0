"""`best_of` and beam search through the engine's face: which answers are given, and what is counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason
from headrace.core.errors import InvalidRequest
from headrace.core.request import BeamParams, SamplingParams
from headrace.sampling import derive_seed
from headrace.testing import next_token, token_logprob

Make = Callable[..., Any]


def drawn(prompt: str, count: int, seed: int) -> tuple[float, list[int]]:
    """One answer and its mean log probability."""
    tokens, total = list(prompt.encode()), 0.0
    for _ in range(count):
        token = next_token(tokens, SamplingParams(seed=seed), 256)
        total += token_logprob(tokens, token)
        tokens.append(token)
    return total / count, tokens[len(prompt.encode()) :]


def tokens_of(deltas: list[Delta], index: int) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.token_ids]


def test_the_likeliest_of_many_are_given_best_first(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run() as bench:
            deltas = await bench.collect(ask("water", max_tokens=7, n=2, best_of=6, seed=3))
            ranked = sorted((drawn("water", 7, derive_seed(3, index)) for index in range(6)), reverse=True)
            assert [tokens_of(deltas, index) for index in (0, 1)] == [ranked[0][1], ranked[1][1]]
            assert [d.finish for d in deltas if d.finish] == [FinishReason.LENGTH] * 2
            assert all(delta.logprobs == () for delta in deltas)
            assert [d.usage.completion_tokens for d in deltas if d.usage] == [42]
            assert deltas[-1].usage is not None
            assert bench.service.snapshot().num_free_blocks == bench.service.snapshot().num_blocks

    asyncio.run(main())


def test_log_probabilities_stay_when_they_are_asked_for(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run() as bench:
            deltas = await bench.collect(ask("water", max_tokens=4, best_of=3, logprobs=1))
            assert sum(len(delta.logprobs) for delta in deltas) == 4

    asyncio.run(main())


def test_a_search_gives_its_answers_whole_and_frees_everything(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run() as bench:
            wide = await bench.collect(ask("water", max_tokens=6, n=3, beam=BeamParams(width=4)))
            assert [d.finish for d in wide if d.finish] == [FinishReason.LENGTH] * 3
            answers = [tokens_of(wide, index) for index in range(3)]
            assert len({tuple(answer) for answer in answers}) == 3
            greedy = await bench.collect(ask("water", max_tokens=6, beam=BeamParams(width=1)))
            assert score("water", answers[0]) >= score("water", tokens_of(greedy, 0))
            assert [score("water", a) for a in answers] == sorted((score("water", a) for a in answers), reverse=True)
            assert wide[-1].usage is not None
            assert wide[-1].usage.completion_tokens == 18
            snapshot = bench.service.snapshot()
            assert (snapshot.num_running, snapshot.num_free_blocks) == (0, snapshot.num_blocks)

    asyncio.run(main())


def score(prompt: str, output: list[int]) -> float:
    tokens, total = list(prompt.encode()), 0.0
    for token in output:
        total += token_logprob(tokens, token)
        tokens.append(token)
    return total / len(output)


def test_a_search_whose_reader_goes_away_is_ended_whole(run: Make, ask: Make) -> None:
    async def main() -> None:
        has_begun, may_go_on = threading.Event(), threading.Event()

        def hold(step: Any) -> None:
            if len(step.rows) == 4 and not step.is_dry_run:
                has_begun.set()
                may_go_on.wait()

        async with run(model={"on_step": hold}) as bench:
            stream = bench.service.generate(ask("water", max_tokens=30, n=2, beam=BeamParams(width=4)))
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.to_thread(has_begun.wait)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            may_go_on.set()
            again = await bench.collect(ask("wine", max_tokens=3))
            assert len(tokens_of(again, 0)) == 3
            snapshot = bench.service.snapshot()
            assert (snapshot.num_running, snapshot.num_free_blocks) == (0, snapshot.num_blocks)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 3, "best_of": 2}, "at least n, 3"),
        ({"n": 3, "beam": BeamParams(width=2)}, "at least n, 3"),
        ({"beam": BeamParams(width=40)}, "at most 32"),
        ({"beam": BeamParams(width=2), "max_tokens": 0}, "at least one token"),
    ],
)
def test_searches_that_cannot_be_served_are_refused(run: Make, ask: Make, fields: dict[str, Any], said: str) -> None:
    async def main() -> None:
        async with run() as bench:
            with pytest.raises(InvalidRequest, match=said):
                await bench.collect(ask("water", **fields))

    asyncio.run(main())
