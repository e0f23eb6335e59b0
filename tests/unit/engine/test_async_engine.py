from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from headrace.core.cuts import Cut
from headrace.core.delta import Delta, FinishReason
from headrace.core.errors import EngineDead, InvalidRequest, Overloaded, PromptTooLong, ServerDraining, WeightsSwapped
from headrace.core.health import HealthState
from headrace.core.request import BeamParams, Knock, RequestId, SamplingParams
from headrace.engine.health import HealthJudge, HealthLimits
from headrace.testing import ByteTokenizer, next_token, token_logprob

Make = Callable[..., Any]


def answer(prompt: str, count: int, seed: int = 0) -> list[int]:
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(next_token(tokens, SamplingParams(seed=seed), 256))
    return tokens[len(prompt.encode()) :]


def tokens_of(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.token_ids]


def text_of(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def test_an_answer_is_the_models_tokens_and_their_text(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run() as bench:
            deltas = await bench.collect(ask(max_tokens=40))
            expected = answer("water", 40)
            assert tokens_of(deltas) == expected
            assert text_of(deltas) == ByteTokenizer().decode(expected)
            assert [d.finish for d in deltas if d.finish] == [FinishReason.LENGTH]
            assert deltas[-1].usage is not None
            assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (5, 40)
            assert all(d.usage is None for d in deltas[:-1])

    asyncio.run(main())


def test_many_at_once_with_preemption_get_the_answers_they_get_alone(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run(model={"num_blocks": 16}, max_context=60) as bench:
            prompts = ["a" * k for k in range(1, 21)]
            answers = await asyncio.gather(*(bench.collect(ask(p, max_tokens=30)) for p in prompts))
            for prompt, deltas in zip(prompts, answers, strict=True):
                assert tokens_of(deltas) == answer(prompt, 30)
            assert bench.service.snapshot().num_preemptions > 0
            assert len(bench.notebook.finished) == 20

    asyncio.run(main())


def test_a_slow_reader_gets_the_same_text_in_fewer_deltas(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run() as bench:
            stream = bench.service.generate(ask(max_tokens=60))
            deltas = [await anext(stream)]
            await bench.until(lambda: bench.scheduler.totals.generated_tokens >= 60)
            await asyncio.sleep(0)
            deltas += [delta async for delta in stream]
            assert tokens_of(deltas) == answer("water", 60)
            assert text_of(deltas) == ByteTokenizer().decode(answer("water", 60))
            assert len(deltas) < 60

    asyncio.run(main())


def test_a_reader_that_lags_pauses_its_own_choice_only(run: Make, ask: Make, valve: Any) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}, streams={"max_unread": 8}) as bench:
            valve.let(1)
            slow = bench.service.generate(ask(max_tokens=100))
            deltas = [await anext(slow)]
            await valve.step(lambda: bench.service.snapshot().num_paused == 1)
            made = bench.scheduler.totals.generated_tokens
            assert 8 < made < 60
            valve.open()
            assert tokens_of(await bench.collect(ask("other", max_tokens=40))) == answer("other", 40)
            assert bench.scheduler.totals.generated_tokens == made + 40
            deltas += [delta async for delta in slow]
            assert tokens_of(deltas) == answer("water", 100)
            assert bench.service.snapshot().num_paused == 0

    asyncio.run(main())


def test_an_engine_whose_readers_all_lag_sleeps_and_is_well(run: Make, ask: Make, valve: Any) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}, streams={"max_unread": 4}) as bench:
            streams = [bench.service.generate(ask(max_tokens=60, n=2)) for _ in range(3)]
            firsts = [asyncio.create_task(anext(stream)) for stream in streams]
            await valve.step(lambda: bench.service.snapshot().num_paused == 6 and all(t.done() for t in firsts))
            valve.open()
            num_steps = bench.service.snapshot().num_steps
            judge = HealthJudge(HealthLimits(stall_s=0.001, stuck_s=0.001), bench.clock)
            for _ in range(3):
                await asyncio.sleep(0.002)
                assert judge.judge(bench.service.facts()).state is HealthState.READY
            assert bench.service.snapshot().num_steps == num_steps
            for stream, first in zip(streams, firsts, strict=True):
                deltas = [first.result()] + [delta async for delta in stream]
                assert [d.finish for d in deltas if d.finish] == [FinishReason.LENGTH] * 2

    asyncio.run(main())


def test_a_paused_choice_gives_its_blocks_to_others_and_goes_on_as_if_nothing_had_been(
    run: Make, ask: Make, valve: Any
) -> None:
    async def main() -> None:
        shape = {"num_blocks": 16, "on_step": valve}
        async with run(streams={"max_unread": 8}, model=shape, max_context=60) as bench:
            valve.let(1)
            slow = bench.service.generate(ask(max_tokens=50))
            deltas = [await anext(slow)]
            await valve.step(lambda: bench.service.snapshot().num_paused == 1)
            valve.open()
            others = [bench.collect(ask("b" * k, max_tokens=50)) for k in range(5, 9)]
            for k, other in zip(range(5, 9), await asyncio.gather(*others), strict=True):
                assert tokens_of(other) == answer("b" * k, 50)
            deltas += [delta async for delta in slow]
            assert tokens_of(deltas) == answer("water", 50)
            assert bench.service.snapshot().num_preemptions > 0

    asyncio.run(main())


def test_a_reader_that_never_comes_back_loses_its_request(run: Make, ask: Make, valve: Any) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}, streams={"max_unread": 4, "slow_reader_s": 0.02}) as bench:
            valve.let(1)
            slow = bench.service.generate(ask(max_tokens=100))
            deltas = [await anext(slow)]
            await valve.step(lambda: not bench.scheduler.has_work)
            assert bench.pool.num_free == bench.pool.num_blocks
            valve.open()
            deltas += [delta async for delta in slow]
            assert [d.finish for d in deltas if d.finish] == [FinishReason.ABORT]
            assert tokens_of(deltas) == answer("water", len(tokens_of(deltas)))

    asyncio.run(main())


def test_a_reader_that_may_be_away_keeps_its_request_for_longer(run: Make, ask: Make, valve: Any) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}, streams={"max_unread": 4, "slow_reader_s": 0.02}) as bench:
            valve.let(1)
            away = bench.service.generate(ask("away", max_tokens=100, grace_s=30.0))
            deltas = [await anext(away)]
            gone = bench.service.generate(ask("gone", max_tokens=100))
            first = asyncio.ensure_future(anext(gone))
            await valve.step(first.done)
            await valve.step(lambda: len(bench.scheduler.live()) == 1)
            valve.open()
            assert [delta async for delta in gone][-1].finish is FinishReason.ABORT
            deltas += [delta async for delta in away]
            assert tokens_of(deltas) == answer("away", 100)

    asyncio.run(main())


def test_each_choice_has_its_own_seed_and_the_first_is_the_answer_of_n_1(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run() as bench:
            deltas = await bench.collect(ask(n=4, seed=7))
            answers = {tuple(tokens_of(deltas, index)) for index in range(4)}
            assert len(answers) == 4
            assert tokens_of(deltas, 0) == answer("water", 12, seed=7)
            assert sorted(d.index for d in deltas if d.finish) == [0, 1, 2, 3]
            assert [d.usage is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
            assert deltas[-1].usage.completion_tokens == 48

    asyncio.run(main())


def test_a_stop_string_ends_the_choice_and_frees_its_sequence(run: Make, ask: Make) -> None:
    async def main() -> None:
        text = ByteTokenizer().decode(answer("water", 100))
        at = next(i for i in range(20, 90) if text[i].isascii() and text.index(text[i]) == i)
        async with run() as bench:
            deltas = await bench.collect(ask(max_tokens=100, stop_strings=(text[at],)))
            assert text_of(deltas) == text[:at]
            assert deltas[-1].finish is FinishReason.STOP
            assert deltas[-1].stop_match == text[at]
            assert deltas[-1].usage.completion_tokens == len(tokens_of(deltas)) < 100
            await bench.until(lambda: not bench.scheduler.has_work)
            assert bench.pool.num_free == bench.pool.num_blocks
            deltas = await bench.collect(ask(max_tokens=100, stop_strings=(text[at],), include_stop_text=True))
            assert text_of(deltas) == text[: at + 1]

    asyncio.run(main())


def test_a_stop_token_is_counted_but_adds_no_text(run: Make, ask: Make) -> None:
    async def main() -> None:
        expected = answer("water", 12)
        stop = expected[7]
        first = expected.index(stop)
        async with run() as bench:
            deltas = await bench.collect(ask(stop_token_ids=frozenset({stop})))
            assert tokens_of(deltas) == expected[: first + 1]
            assert text_of(deltas) == ByteTokenizer().decode(expected[:first])
            assert (deltas[-1].finish, deltas[-1].stop_match) == (FinishReason.STOP, stop)

    asyncio.run(main())


def test_logprobs_of_output_and_prompt_are_spelled_and_survive_chunking(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run(max_step_tokens=3) as bench:
            deltas = await bench.collect(ask("a long prompt", logprobs=2, prompt_logprobs=1, max_tokens=3))
            prompt = list(b"a long prompt")
            scored = deltas[0].prompt_logprobs
            assert scored[0] is None
            assert [p.chosen.token_id for p in scored[1:]] == prompt[1:]
            assert [p.chosen.logprob for p in scored[1:]] == [
                token_logprob(prompt[:i], prompt[i]) for i in range(1, len(prompt))
            ]
            assert scored[1].chosen.text == " "
            shown = [position for delta in deltas for position in delta.logprobs]
            assert [p.chosen.token_id for p in shown] == answer("a long prompt", 3)
            assert all(len(p.top) == 2 for p in shown)
            assert all(not delta.prompt_logprobs for delta in deltas[1:])

    asyncio.run(main())


def test_scoring_a_prompt_without_output_is_one_delta(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run(max_step_tokens=2) as bench:
            (delta,) = await bench.collect(ask("abcde", prompt_logprobs=0, max_tokens=0))
            assert [p and p.chosen.token_id for p in delta.prompt_logprobs] == [None, *b"bcde"]
            assert delta.finish is FinishReason.LENGTH
            assert delta.usage.completion_tokens == 0

    asyncio.run(main())


@pytest.mark.parametrize("way", ["close", "cancel", "raise"])
def test_a_reader_that_goes_away_frees_its_blocks(run: Make, ask: Make, valve: Any, way: str) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}) as bench:
            valve.let(1)
            stream = bench.service.generate(ask("wat", max_tokens=120, n=3))  # less than a block: nothing to share
            assert [(await anext(stream)).index for _ in range(3)] == [0, 1, 2]
            if way == "close":
                await stream.aclose()
            elif way == "raise":
                with pytest.raises(OSError, match="gone"):
                    await stream.athrow(OSError("gone"))
            else:
                task = asyncio.create_task(anext(stream))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert bench.scheduler.num_running == 3
            valve.open()
            await bench.until(lambda: not bench.scheduler.has_work)
            assert bench.pool.num_free == bench.pool.num_blocks
            (stats,) = bench.notebook.finished
            assert stats.finishes == (FinishReason.ABORT,) * 3

    asyncio.run(main())


def test_an_abort_storm_leaves_nothing_behind(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run(max_waiting=1000, model={"num_blocks": 20}) as bench:

            async def hurried(number: int) -> None:
                stream = bench.service.generate(ask("x" * (number % 9 + 1), max_tokens=50))
                for _ in range(number % 4):
                    await anext(stream, None)
                await stream.aclose()

            await asyncio.gather(*(hurried(number) for number in range(200)))
            await bench.until(lambda: not bench.scheduler.has_work and not bench.service.snapshot().num_waiting)
            assert bench.pool.num_free == 20
            assert tokens_of(await bench.collect(ask())) == answer("water", 12)

    asyncio.run(main())


def test_an_abort_by_id_is_exact_idempotent_and_tells_what_was_made(run: Make, ask: Make, valve: Any) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}) as bench:
            valve.let(2)
            one, ten = (ask(max_tokens=40, n=n, request_id=name) for name, n in (("req-1", 2), ("req-10", 1)))
            reading = [asyncio.create_task(bench.collect(request)) for request in (one, ten)]
            await bench.until(lambda: bench.scheduler.totals.generated_tokens >= 3)
            assert not bench.service.abort("req")
            assert bench.service.abort("req-1")
            assert bench.service.abort("req-1")
            valve.open()
            aborted, whole = await asyncio.gather(*reading)
            assert [d.finish for d in aborted if d.finish] == [FinishReason.ABORT] * 2
            assert tokens_of(aborted) == answer("water", len(tokens_of(aborted)))
            assert aborted[-1].usage.completion_tokens < 80
            assert tokens_of(whole) == answer("water", 40)
            assert not bench.service.abort("req-1")

    asyncio.run(main())


def test_ten_thousand_aborts_by_id_leak_nothing(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run(max_waiting=20_000, max_num_seqs=32, max_step_tokens=64, model={"num_blocks": 48}) as bench:

            async def hurried(number: int) -> int:
                request = ask("x" * (number % 9 + 1), max_tokens=50, request_id=f"storm-{number}")
                deltas = 0
                async for delta in bench.service.generate(request):
                    deltas += 1
                    if delta.finish is not None:
                        return deltas
                    if deltas > number % 4:
                        bench.service.abort(request.request_id)
                return deltas

            storm = [asyncio.create_task(hurried(number)) for number in range(10_000)]
            await asyncio.sleep(0)
            for number in range(0, 10_000, 3):  # these are ended while they wait
                bench.service.abort(f"storm-{number}")
            assert all(await asyncio.gather(*storm))
            assert len(bench.notebook.finished) == 10_000
            assert not bench.scheduler.has_work
            assert bench.pool.num_free == 48
            assert not bench.engine.live()

    asyncio.run(main())


def test_a_failed_row_fails_its_choice_only(run: Make, ask: Make) -> None:
    def fail(row: Any) -> str | None:
        return "logits are NaN" if row.tokens[0] == ord("!") else None

    async def main() -> None:
        async with run(model={"fail_row": fail}) as bench:
            bad, good = await asyncio.gather(bench.collect(ask("!bad")), bench.collect(ask()))
            assert (bad[-1].finish, bad[-1].error) == (FinishReason.ERROR, "logits are NaN")
            assert tokens_of(good) == answer("water", 12)

    asyncio.run(main())


def test_a_deadline_that_passes_in_the_queue_ends_the_request_as_expired(run: Make, ask: Make, valve: Any) -> None:
    async def main() -> None:
        async with run(max_num_seqs=1, model={"on_step": valve}) as bench:
            first = asyncio.ensure_future(bench.collect(ask(max_tokens=30)))
            await bench.until(lambda: bench.scheduler.num_running == 1)
            late = asyncio.ensure_future(bench.collect(ask("late", deadline_s=0.001)))
            await bench.until(lambda: bench.service.snapshot().num_waiting == 1)
            valve.open()
            (delta,) = await late
            assert (delta.finish, delta.usage.completion_tokens) == (FinishReason.EXPIRED, 0)
            assert "the request was waiting; nothing was generated" in delta.error
            assert (await first)[-1].finish is FinishReason.LENGTH
            assert [stats.finishes for stats in bench.notebook.finished].count((FinishReason.EXPIRED,)) == 1

    asyncio.run(main())


def test_text_that_cannot_be_made_fails_its_choice_only(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run(model={"vocab_size": 300}) as bench:  # tokens 258 … 299 have no spelling
            deltas = await bench.collect(ask(max_tokens=100))
            assert deltas[-1].finish is FinishReason.ERROR
            assert "outside 0 … 257" in deltas[-1].error
            await bench.until(lambda: not bench.scheduler.has_work)

    asyncio.run(main())


def test_a_dead_engine_ends_every_live_request_once_and_says_so(run: Make, ask: Make) -> None:
    async def main() -> None:
        all_are_in = threading.Event()

        def explode(step: Any) -> None:
            if step.step_id >= 9:
                all_are_in.wait()
                raise MemoryError("device lost")

        async with run(model={"on_step": explode}, max_num_seqs=2) as bench:
            asked = [asyncio.ensure_future(bench.collect(ask(f"{k}", max_tokens=50))) for k in range(6)]
            while bench.service.snapshot().num_running + bench.service.snapshot().num_waiting < 6:
                await asyncio.sleep(0)
            all_are_in.set()
            answers = await asyncio.gather(*asked)
            for deltas in answers:
                assert [d.finish for d in deltas if d.finish] == [FinishReason.ERROR]
                assert "device lost" in deltas[-1].error
            with pytest.raises(EngineDead, match="MemoryError: device lost"):
                await bench.service.wait_dead()
            with pytest.raises(EngineDead):
                await bench.collect(ask())
            assert bench.service.snapshot().is_dead
            assert bench.model.is_shut_down

    asyncio.run(main())


def test_an_engine_that_cannot_warm_up_does_not_start(run: Make) -> None:
    async def main() -> None:
        def explode(step: Any) -> None:
            assert step.is_dry_run
            raise ValueError("no such kernel")

        with pytest.raises(EngineDead, match="no such kernel"):
            async with run(model={"on_step": explode}):
                pass

    asyncio.run(main())


def test_refusals_come_before_any_work_and_name_the_numbers(run: Make, ask: Make) -> None:
    async def main() -> None:
        gate = threading.Event()

        def hold(step: Any) -> None:
            assert step.is_dry_run or gate.wait(10)

        async with run(max_waiting=2, max_num_seqs=1, model={"on_step": hold}) as bench:
            with pytest.raises(PromptTooLong, match=r"prompt has 128 tokens; this server accepts 127"):
                await bench.collect(ask("x" * 128))
            with pytest.raises(InvalidRequest, match="temperature is -1"):
                await bench.collect(ask(temperature=-1.0))
            with pytest.raises(InvalidRequest, match="the prompt has no tokens"):
                await bench.collect(ask(""))
            with pytest.raises(InvalidRequest, match="n is 0"):
                await bench.collect(ask(n=0))
            with pytest.raises(InvalidRequest, match="empty string"):
                await bench.collect(ask(stop_strings=("",)))
            first = asyncio.create_task(bench.collect(ask()))
            await bench.until(lambda: bench.scheduler.num_running == 1)
            others = [asyncio.create_task(bench.collect(ask())) for _ in range(2)]
            await bench.until(lambda: bench.service.snapshot().num_waiting == 2)
            with pytest.raises(Overloaded, match="the limit is 2") as refusal:
                await bench.collect(ask())
            assert refusal.value.retry_after_s >= 1.0
            assert len(bench.notebook.refused) == 6
            knock = Knock(request_id=RequestId("early"), model="m", arrival_s=bench.clock.now())
            with pytest.raises(Overloaded, match="the limit is 2"):
                bench.service.check_room(knock)
            assert len(bench.notebook.refused) == 7
            why = await bench.service.explain(RequestId("early"))
            assert why is not None
            assert (why.refused, why.prompt_tokens) == ("overloaded", None)
            gate.set()
            for deltas in await asyncio.gather(first, *others):
                assert tokens_of(deltas) == answer("water", 12)

    asyncio.run(main())


def test_stopping_lets_live_requests_end_and_refuses_new_ones(run: Make, ask: Make, valve: Any) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}) as bench:
            valve.let(1)
            stream = bench.service.generate(ask(max_tokens=30))
            deltas = [await anext(stream)]
            stopping = asyncio.create_task(bench.service.stop(drain_s=20))
            await asyncio.sleep(0)
            with pytest.raises(ServerDraining, match="shutting down"):
                await bench.collect(ask())
            with pytest.raises(ServerDraining, match="shutting down"):
                bench.service.check_room(Knock(request_id=RequestId("late"), model="m"))
            valve.open()
            deltas += [delta async for delta in stream]
            assert tokens_of(deltas) == answer("water", 30)
            await stopping

    asyncio.run(main())


@pytest.mark.parametrize("cut", [Cut.SWAP, Cut.DRAIN])
@pytest.mark.parametrize("kind", [{}, {"n": 2}, {"best_of": 3}, {"beam": BeamParams(width=2)}])
def test_stopping_at_once_cuts_off_live_and_waiting_requests_and_says_why(
    run: Make, ask: Make, valve: Any, cut: Cut, kind: Any
) -> None:
    async def main() -> None:
        async with run(model={"on_step": valve}, max_num_seqs=3) as bench:
            valve.let(1)
            requests = [ask(max_tokens=30, **kind) for _ in range(4)]
            streams = [asyncio.create_task(bench.collect(request)) for request in requests]
            await bench.until(lambda: bench.service.snapshot().num_waiting > 0 and valve.num_begun > 1)
            stopping = asyncio.create_task(bench.service.stop(cut=cut, had_s=2.0))
            await asyncio.sleep(0.01)
            valve.open()
            for deltas in await asyncio.gather(*streams):
                ends = [delta for delta in deltas if delta.finish is not None]
                assert {(end.finish, end.cut) for end in ends} == {(FinishReason.ERROR, cut)}
                assert "had 2 s to end" in (ends[0].error or "")
                assert len(ends) == (2 if "n" in kind else 1)
            await stopping
            with pytest.raises(WeightsSwapped if cut is Cut.SWAP else ServerDraining):
                await bench.collect(ask())

    asyncio.run(main())


def test_the_observer_hears_of_every_step_token_and_end(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run() as bench:
            await bench.collect(ask(n=2, max_tokens=10))
            (stats,) = bench.notebook.finished
            assert (stats.prompt_tokens, stats.completion_tokens) == (5, 20)
            assert stats.finishes == (FinishReason.LENGTH, FinishReason.LENGTH)
            assert stats.arrival_s <= stats.first_scheduled_s <= stats.first_token_s <= stats.finished_s
            assert len(bench.notebook.ttfts) == 1
            assert len(bench.notebook.gaps) == 18
            assert sum(step.num_sampled for step in bench.notebook.steps) == 20
            snapshot = bench.service.snapshot()
            assert (snapshot.prompt_tokens, snapshot.generated_tokens) == (5 + 1, 20)  # a block of four was shared
            assert (snapshot.prefix_queries, snapshot.prefix_hits) == (10, 4)
            assert snapshot.kv_usage == 0.0
            assert snapshot.last_step_s is not None

    asyncio.run(main())
