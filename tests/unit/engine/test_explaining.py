"""Why a request is where it is: told between two steps, from what the scheduler has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headrace.core.errors import EngineBusy, Overloaded
from headrace.core.request import RequestId, SeqId
from headrace.core.why import Explanation, RequestState, WaitReason
from headrace.engine import async_engine, explaining
from headrace.sched.decisions import Preempted, PreemptReason


def ask_why(bench: Any, request: Any) -> Any:
    return bench.service.explain(request.request_id)


def test_a_waiting_request_is_told_what_it_lacks_and_a_finished_one_how_it_went(
    run: Callable[..., Any], ask: Callable[..., Any], valve: Any
) -> None:
    async def story() -> None:
        async with run(max_num_seqs=1, model={"on_step": valve}) as bench:
            first, second, third = (ask(text, max_tokens=4) for text in ("river", "brook", "creek"))
            tasks = [asyncio.ensure_future(bench.collect(request)) for request in (first, second, third)]
            await bench.until(lambda: valve.num_begun > 0)
            found = asyncio.gather(*(ask_why(bench, request) for request in (first, second, third)))
            await asyncio.sleep(0)
            valve.let(1)
            runs, waits, waits_longer = await found
            assert runs.state is RequestState.RUNNING
            assert runs.choices[0].output_tokens == 1
            assert (waits.state, waits.choices[0].reason) == (RequestState.WAITING, WaitReason.PLACES)
            assert (waits.choices[0].position, waits_longer.choices[0].position) == (1, 2)
            assert waits.sentence == (
                "It waits as number 1 of 2 (priority 0): 1 sequences run, and no more than 1 may."
            )
            valve.open()
            await asyncio.gather(*tasks)
            ended = await ask_why(bench, second)
            assert ended.state is RequestState.FINISHED
            assert ended.choices[0].finish == "length"
            assert ended.prompt_tokens == 5
            assert 0 <= ended.queued_for_s <= ended.first_token_after_s <= ended.finished_after_s <= ended.age_s
            assert "4 tokens were generated" in ended.sentence

    asyncio.run(story())


def test_a_request_waits_for_the_prefix_that_another_one_computes(
    run: Callable[..., Any], ask: Callable[..., Any], valve: Any
) -> None:
    async def story() -> None:
        async with run(max_step_tokens=8, model={"on_step": valve}) as bench:
            first, second = (ask("a long prompt that both begin with " + end, max_tokens=2) for end in "ab")
            tasks = [asyncio.ensure_future(bench.collect(request)) for request in (first, second)]
            await bench.until(lambda: valve.num_begun > 0)
            found = asyncio.ensure_future(ask_why(bench, second))
            await asyncio.sleep(0)
            valve.let(1)
            waits = await found
            assert waits.choices[0].reason is WaitReason.PREFIX
            assert waits.choices[0].prefix_from == first.request_id
            assert f"{first.request_id} is computing what it begins with" in waits.sentence
            valve.open()
            await asyncio.gather(*tasks)

    asyncio.run(story())


def test_a_refused_request_is_told_the_numbers(run: Callable[..., Any], ask: Callable[..., Any], valve: Any) -> None:
    async def story() -> None:
        async with run(max_num_seqs=1, max_waiting=1, model={"on_step": valve}) as bench:
            requests = [ask(f"number {i}", max_tokens=2) for i in range(4)]
            tasks = [asyncio.ensure_future(bench.collect(request)) for request in requests]
            await bench.until(lambda: any(task.done() for task in tasks))
            refused = next(r for r, task in zip(requests, tasks, strict=True) if task.done())
            why = await ask_why(bench, refused)
            assert (why.state, why.refused) == (RequestState.REFUSED, "overloaded")
            assert "the limit is 1" in why.sentence
            valve.open()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(isinstance(each, Overloaded) for each in done)

    asyncio.run(story())


def test_an_engine_that_does_not_answer_is_said_to_be_busy(
    run: Callable[..., Any], ask: Callable[..., Any], valve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_engine, "_ANSWER_S", 0.01)

    async def story() -> None:
        async with run(model={"on_step": valve}) as bench:
            request = ask(max_tokens=2)
            task = asyncio.ensure_future(bench.collect(request))
            await bench.until(lambda: valve.num_begun > 0)
            with pytest.raises(EngineBusy, match="ask again"):
                await ask_why(bench, request)
            valve.open()
            await task
            assert await bench.service.explain(RequestId("never")) is None

    asyncio.run(story())


def test_preemptions_are_told_and_strangers_are_not_named(
    run: Callable[..., Any], ask: Callable[..., Any], valve: Any
) -> None:
    async def story() -> None:
        async with run(model={"on_step": valve}) as bench:
            mine, other, stranger = ask(max_tokens=2), ask(max_tokens=2), ask(max_tokens=2, tenant="else")
            tasks = [asyncio.ensure_future(bench.collect(request)) for request in (mine, other, stranger)]
            await bench.until(lambda: valve.num_begun > 0)
            memory = bench.service._memory
            for by in (2, 1):
                memory.note_preempted(5.0, Preempted(SeqId(0), SeqId(by), PreemptReason.GROWTH, 3, 40))
            found = asyncio.ensure_future(ask_why(bench, mine))
            await asyncio.sleep(0)
            valve.let(1)
            (choice,) = (await found).choices
            assert [note.by for note in choice.preemptions] == [None, other.request_id]
            assert f"to {other.request_id}, which needed a block" in choice.sentence
            valve.open()
            await asyncio.gather(*tasks)
            (choice,) = (await ask_why(bench, mine)).choices
            assert "It was preempted 2 times" in choice.sentence
            assert "3 blocks" in choice.sentence
            assert "40 computed tokens" in choice.sentence
            assert not memory._preemptions

    asyncio.run(story())


def test_memory_is_bounded_in_number_and_time(
    run: Callable[..., Any], ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with run() as bench:
            monkeypatch.setattr(explaining, "_MOST_KEPT", 2)
            requests = [ask(max_tokens=1) for _ in range(3)]
            for request in requests:
                await bench.collect(request)
            found: list[Explanation | None] = [await ask_why(bench, request) for request in requests]
            assert [explanation is not None for explanation in found] == [False, True, True]
            monkeypatch.setattr(explaining, "_KEPT_S", -1.0)
            assert await ask_why(bench, requests[2]) is None
            assert not bench.service._memory._ended

    asyncio.run(story())
