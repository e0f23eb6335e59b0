"""Random requests, stop strings, leaving readers and pool sizes over the whole engine, threads included."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.clock import MonotonicClock
from headrace.core.delta import Delta, FinishReason
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.engine import AsyncEngine, Engine
from headrace.kv import BlockPool
from headrace.sampling import derive_seed
from headrace.sched import Scheduler, SchedulerLimits
from headrace.testing import ByteTokenizer, UniformModel, next_token

VOCAB = 128  # ASCII, so that the text is easy to know


class Wish(NamedTuple):
    """A request, and after how many deltas its reader leaves (None: never)."""

    prompt: str
    n: int
    seed: int
    max_tokens: int
    stop: tuple[str, ...]
    leaves_after: int | None

    def request(self, number: int) -> Request:
        return Request(
            request_id=RequestId(str(number)),
            model="m",
            prompt=tuple(self.prompt.encode()),
            sampling=SamplingParams(seed=self.seed),
            stop=StopRules(max_tokens=self.max_tokens, stop_strings=self.stop),
            n=self.n,
        )

    def answer(self, index: int) -> tuple[str, FinishReason]:
        """The text of a choice made in one go, and cut at the stop string that is complete first."""
        tokens = list(self.prompt.encode())
        text = ""
        for _ in range(self.max_tokens):
            tokens.append(next_token(tokens, SamplingParams(seed=derive_seed(self.seed, index)), VOCAB))
            text += chr(tokens[-1])
            ends = [text.index(stop) for stop in self.stop if stop in text]
            if ends:
                return text[: min(ends)], FinishReason.STOP
        return text, FinishReason.LENGTH


wishes = st.builds(
    Wish,
    prompt=st.text(st.characters(codec="ascii"), min_size=1, max_size=12),
    n=st.integers(1, 3),
    seed=st.integers(0, 5),
    max_tokens=st.integers(1, 24),
    stop=st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=2), max_size=3).map(tuple),
    leaves_after=st.sampled_from([None, None, 0, 1, 3]),
)


async def read(service: AsyncEngine, wish: Wish, number: int) -> list[Delta]:
    deltas: list[Delta] = []
    stream = service.generate(wish.request(number))
    while wish.leaves_after is None or len(deltas) < wish.leaves_after:
        delta = await anext(stream, None)
        if delta is None:
            break
        deltas.append(delta)
    await stream.aclose()
    return deltas


async def serve(coming: list[Wish], num_blocks: int, max_step_tokens: int, *, plans_ahead: bool) -> list[list[Delta]]:
    limits = SchedulerLimits(
        max_num_seqs=4, max_step_tokens=max_step_tokens, max_context=40, max_waiting=1000, plans_ahead=plans_ahead
    )
    pool = BlockPool(num_blocks)
    scheduler = Scheduler(pool, 4, limits)
    model = UniformModel(num_blocks=num_blocks, block_size=4, vocab_size=VOCAB)
    clock = MonotonicClock()
    service = AsyncEngine(Engine(scheduler, model, clock), ByteTokenizer(), clock, vocab_size=VOCAB)
    await service.start()
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(read(service, wish, number) for number, wish in enumerate(coming)))
    await service.stop()
    scheduler.check()
    assert pool.num_free == num_blocks
    return answers


@settings(max_examples=60, deadline=None)
@given(st.lists(wishes, min_size=1, max_size=8), st.integers(10, 30), st.integers(1, 20), st.booleans())
def test_streamed_text_is_the_text_made_in_one_go(
    coming: list[Wish], num_blocks: int, max_step_tokens: int, plans_ahead: bool
) -> None:
    answers = asyncio.run(serve(coming, num_blocks, max_step_tokens, plans_ahead=plans_ahead))
    for wish, deltas in zip(coming, answers, strict=True):
        for index in range(wish.n):
            mine = [delta for delta in deltas if delta.index == index]
            text = "".join(delta.text for delta in mine)
            expected, finish = wish.answer(index)
            if not mine or mine[-1].finish is None:
                assert wish.leaves_after is not None
                assert expected.startswith(text)
                continue
            assert text == expected
            assert [delta.finish for delta in mine if delta.finish] == [finish]
        if wish.leaves_after is None:
            assert [delta.usage is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
