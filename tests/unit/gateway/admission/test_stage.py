"""The stage around an upstream: however an answer ends, it is settled once, with the tokens it really had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from headrace.core.conversation import Conversation, Given, ImagePart, Message, TextPart
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import BudgetExceeded, Forbidden, RequestFailed, StoreUnavailable
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.gateway.admission import Admission
from headrace.gateway.admission.stage import AdmissionRules
from headrace.gateway.budgets.price_table import PriceTable
from headrace.gateway.identity import Directory
from headrace.gateway.identity.permission import Permission
from headrace.gateway.limits import What
from headrace.gateway.pipeline import Pipeline
from headrace.gateway.store.watch import Watch
from headrace.testing import ByteTokenizer, EchoUpstream, VirtualClock
from tests.gateway_scene import Scene, play

PRICES = PriceTable({"m": "0.001/0.001"})  # a nano-dollar a token


class Scripted:
    """An upstream that yields deltas and raises errors as told; remembers requests and whether it was closed."""

    def __init__(self, *events: Delta | Exception) -> None:
        self.events = events
        self.requests: list[Request] = []
        self.is_closed = False

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        self.requests.append(request)
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                yield event
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


def request(prompt: str = "hello", max_tokens: int = 50, model: str = "m", **fields: Any) -> Request:
    return Request(
        request_id=RequestId("q1"), model=model, prompt=tuple(prompt.encode()), sampling=SamplingParams(),
        stop=StopRules(max_tokens=max_tokens), **fields,
    )  # fmt: skip


def front(s: Scene, upstream: Any, *, is_unpriced_allowed: bool = False) -> Pipeline:
    rules = AdmissionRules(least_output=4, default_output=30, is_unpriced_allowed=is_unpriced_allowed)
    return Pipeline([Admission(s.gateway, s.rulebook, PRICES, rules)], upstream)


async def take(upstream: Any, asked: Request, num: int | None = None) -> list[Delta]:
    found: list[Delta] = []
    async with aclosing(upstream.generate(asked)) as deltas:
        async for delta in deltas:
            found.append(delta)
            if len(found) == num:
                break
    return found


async def settled(s: Scene) -> dict[str, Any]:
    await s.written()
    (row,) = await s.rows(
        "SELECT request_id, outcome, input_uncached, cache_read, output_text, is_estimate, cost_nano FROM settlements"
    )
    assert await s.rows("SELECT id FROM reservations") == []
    return {name: value for name, value in row.items() if name != "request_id"}


def token(*ids: int, **fields: Any) -> Delta:
    return Delta(token_ids=ids, text="x" * len(ids), **fields)


def test_a_finished_answer_is_settled_by_its_usage(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.limits.set("all", What.REQUESTS, 5, per="minute")
        await s.load()
        usage = Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4)
        script = Scripted(token(1), token(2), token(3, finish=FinishReason.STOP, usage=usage))
        deltas = await take(front(s, script), request())
        assert [delta.token_ids for delta in deltas] == [(1,), (2,), (3,)]
        headers = dict(deltas[0].headers)
        assert headers["x-ratelimit-limit-requests"] == "5"
        assert headers["x-ratelimit-remaining-requests"] == "4"
        assert headers["x-headrace-reserved-usd"] == "0.000000055"
        assert deltas[1].headers == ()
        assert await settled(s) == {
            "outcome": "stop", "input_uncached": 1, "cache_read": 4, "output_text": 3, "is_estimate": 0, "cost_nano": 8,
        }  # fmt: skip
        assert await s.accounts() == [(8, 0)]

    play(url, scene)


@pytest.mark.parametrize("num_taken", [1, 2, 3])
def test_a_client_that_goes_away_pays_for_what_came_by(tmp_path: Any, num_taken: int) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        script = Scripted(*(token(i) for i in range(9)))
        await take(front(s, script), request(), num_taken)
        assert script.is_closed
        assert await settled(s) == {
            "outcome": "abort", "input_uncached": 5, "cache_read": 0, "output_text": num_taken, "is_estimate": 1,
            "cost_nano": 5 + num_taken,
        }  # fmt: skip

    play(f"sqlite:///{tmp_path / 'a.db'}", scene)


def sqlite_play(tmp_path: Any) -> Callable[[Any], None]:
    return lambda scene: play(f"sqlite:///{tmp_path / 'a.db'}", scene)


def test_an_answer_that_never_began_costs_nothing(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        with pytest.raises(RequestFailed):
            await take(front(s, Scripted(RequestFailed("no"))), request())
        row = await settled(s)
        assert (row["outcome"], row["input_uncached"], row["cost_nano"]) == ("error", 0, 0)

    sqlite_play(tmp_path)(scene)


def test_an_answer_that_fails_half_way_costs_what_came(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        with pytest.raises(RequestFailed):
            await take(front(s, Scripted(token(1), token(2), RequestFailed("no"))), request())
        row = await settled(s)
        assert (row["outcome"], row["output_text"], row["cost_nano"]) == ("error", 2, 7)

    sqlite_play(tmp_path)(scene)


def test_a_cancelled_task_settles(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        started = asyncio.Event()

        class Stuck:
            async def generate(self, asked: Request) -> AsyncIterator[Delta]:
                yield token(1)
                started.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(take(front(s, Stuck()), request()))
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        row = await settled(s)
        assert (row["outcome"], row["output_text"]) == ("abort", 1)

    sqlite_play(tmp_path)(scene)


def test_an_answer_is_shortened_to_what_is_left(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 25)
        await s.load()
        tokenizer: Any = ByteTokenizer()
        pipeline = front(s, EchoUpstream(tokenizer))
        deltas = await take(pipeline, request("0123456789", max_tokens=40, n=2))
        assert [d.finish for d in deltas if d.finish is not None] == [FinishReason.LENGTH] * 2
        assert dict(deltas[0].headers)["x-headrace-budget-max-tokens"] == "15"
        assert (await settled(s))["output_text"] == 14  # seven each
        assert await s.accounts() == [(24, 0)]
        with pytest.raises(BudgetExceeded, match=r"\$0.000000025 and has \$0.000000001 left"):
            await take(pipeline, request("0123456789"))

    sqlite_play(tmp_path)(scene)


def test_an_upstream_that_writes_more_than_it_may_is_stopped(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        script = Scripted(*(token(i, i) for i in range(50)))
        deltas = await take(front(s, script), request(max_tokens=5))
        assert deltas[-1].finish is FinishReason.LENGTH
        assert sum(len(delta.token_ids) for delta in deltas) == 6  # one delta beyond
        assert script.is_closed
        assert (await settled(s))["outcome"] == "length"

    sqlite_play(tmp_path)(scene)


def test_a_stream_whose_lease_cannot_be_renewed_stops(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        deltas: Any = front(s, Scripted(*(token(i) for i in range(9)))).generate(request())
        async with aclosing(deltas):
            await anext(deltas)
            s.clock.advance(28.0)
            with pytest.raises(StoreUnavailable, match="confirmed"):
                await anext(deltas)
        assert (await settled(s))["outcome"] == "error"

    sqlite_play(tmp_path)(scene)


def test_a_model_without_a_price_meets_a_hard_budget_as_configured(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        script = Scripted(token(1, finish=FinishReason.STOP, usage=Usage(prompt_tokens=5, completion_tokens=1)))
        with pytest.raises(BudgetExceeded, match=r"price of 'other' is not known.*gateway.prices"):
            await take(front(s, script), request(model="other"))
        await take(front(s, script, is_unpriced_allowed=True), request(model="other"))
        assert (await settled(s))["cost_nano"] is None
        assert caplog.text.count("price of 'other' is not known") == 2  # once a gateway

    sqlite_play(tmp_path)(scene)


def test_a_model_without_a_price_is_warned_of_once_where_no_budget_holds(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(s: Scene) -> None:
        await s.load()
        script = Scripted(token(1, finish=FinishReason.STOP, usage=Usage(prompt_tokens=5, completion_tokens=1)))
        gateway = front(s, script)
        for _ in range(2):
            await take(gateway, request(model="other"))
        await take(gateway, request(model="m"))
        assert [record.message for record in caplog.records if "is not known" in record.message] == [
            "the price of 'other' is not known: what it costs is null in the ledger and charged to no budget; "
            "set gateway.prices for it"
        ]

    sqlite_play(tmp_path)(scene)


def test_a_key_may_ask_its_own_models_only(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.registry.create_tenant("acme")
        key = (await s.registry.create_key("acme", models=["a", "b"])).key
        directory = Directory()
        await Watch(s.database, VirtualClock(), [directory]).look()
        script = Scripted(token(1))
        pipeline = Pipeline([Permission(directory)], script)
        with pytest.raises(Forbidden, match="it may ask 'a', 'b'"):
            await take(pipeline, request(model="m", tenant="acme", key_id=key.id))
        assert script.requests == []
        assert len(await take(pipeline, request(model="b", tenant="acme", key_id=key.id))) == 1
        with pytest.raises(Forbidden):
            await take(pipeline, request(model="b", key_id="removed"))

    sqlite_play(tmp_path)(scene)


def test_stages_are_entered_in_order_and_the_request_stays_as_it_was(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.load()
        script = Scripted(token(1, finish=FinishReason.STOP, usage=Usage(prompt_tokens=5, completion_tokens=1)))
        asked = request(max_tokens=7)
        await take(front(s, script), asked)
        assert script.requests == [asked]
        assert msgspec.structs.asdict(asked)["stop"].max_tokens == 7

    sqlite_play(tmp_path)(scene)


def test_a_request_in_words_is_bounded_before_and_settled_by_what_the_upstream_tells(tmp_path: Any) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 5000)
        await s.load()
        usage = Usage(prompt_tokens=9, completion_tokens=7, cached_tokens=2, cache_write_tokens=3, reasoning_tokens=4)
        script = Scripted(Delta(text="four score and"), Delta(finish=FinishReason.STOP, usage=usage))
        words = Conversation(messages=(Message("user", (TextPart("x" * 40), ImagePart("https://a/b.png"))),))
        asked = request("", max_tokens=1 << 20, source=words, given=Given())
        await take(front(s, script), asked)
        assert script.requests[0].given is not None
        assert script.requests[0].given.max_tokens == script.requests[0].stop.max_tokens == 30
        await s.written()
        (row,) = await s.rows("SELECT * FROM settlements")
        buckets = ("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning")
        assert [row[name] for name in buckets] == [4, 2, 3, 3, 4]

    sqlite_play(tmp_path)(scene)


def test_monitors_hear_what_callers_were_charged_and_how_full_budgets_are(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 200)
        await s.load()
        for _ in range(2):
            await take(front(s, EchoUpstream(ByteTokenizer())), request())
            await s.written()
        stats = s.gateway.stats()
        assert stats.charged_nano == {"m": 20}
        assert list(stats.budget_used.values()) == [10 / 200]  # as the second request found it

    play(url, scene)


def test_a_failure_carries_what_it_was_charged_and_where_limits_stand(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.limits.set("all", What.REQUESTS, 10, per="minute")
        await s.load()
        upstream = Scripted(Delta(text="ab", token_ids=(1, 2)), RequestFailed("it broke"))
        with pytest.raises(RequestFailed) as caught:
            await take(front(s, upstream), request("hello"))
        assert dict(caught.value.headers)["x-headrace-cost-usd"] == "0.000000007"
        with pytest.raises(RequestFailed) as caught:
            await take(front(s, Scripted(RequestFailed("at once"))), request("hello"))
        told = dict(caught.value.headers)
        assert (told["x-headrace-cost-usd"], told["x-ratelimit-remaining-requests"]) == ("0.00", "8")

    play(url, scene)
