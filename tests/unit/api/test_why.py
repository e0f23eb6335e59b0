"""GET /v1/requests/{id}/why: answered to who asked, in full; to all others the request does not exist."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from headrace.api import Models
from headrace.core.clock import MonotonicClock
from headrace.core.request import RequestId
from headrace.core.step import Step
from headrace.core.why import ChoiceNote, Explanation, RequestState
from headrace.engine import AsyncEngine
from headrace.engine import Engine as EngineLoop
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, Places, TierHierarchy
from headrace.kv.transfer import DiskTransport, FrameCodec, HostPool, Mover
from headrace.sched import Scheduler, SchedulerLimits
from headrace.testing import ByteTokenizer, FixedCost, UniformModel, VirtualClock
from headrace.testing.faults import FaultyTransport, TransportFault
from headrace.testing.uniform_model import TOKEN_BYTES


class Engine:
    """Knows one request."""

    def __init__(self, *known: str) -> None:
        self.known = known
        self.asked: list[str] = []

    async def explain(self, request_id: RequestId) -> Explanation | None:
        self.asked.append(request_id)
        if request_id not in self.known:
            return None
        choice = ChoiceNote(index=0, state=RequestState.FINISHED, sentence="It ended: stop.", finish="stop")
        return Explanation(
            id=request_id, model="echo", state=RequestState.FINISHED, sentence="It went.", age_s=2.0, choices=[choice]
        )


def serve(make_api: Any, engine: Engine, **state: Any) -> Any:
    plain = make_api()
    (model,) = plain.app._state.models
    return make_api(models=Models([replace(model, explain=engine.explain)]), **state)


def test_an_explanation_is_found_by_the_id_of_the_header_and_of_the_reply(make_api: Any) -> None:
    engine = Engine("chatcmpl-mine")
    api = serve(make_api, engine)
    body = {"messages": [{"role": "user", "content": "hi"}]}
    reply = api.call("POST", "/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
    assert reply.status_code == 200
    for spelled in ("mine", reply.json()["id"]):
        why = api.call("GET", f"/v1/requests/{spelled}/why")
        assert why.status_code == 200
        assert why.json() == {
            "id": "chatcmpl-mine",
            "model": "echo",
            "state": "finished",
            "sentence": "It went.",
            "age_s": 2.0,
            "choices": [{"index": 0, "state": "finished", "sentence": "It ended: stop.", "finish": "stop"}],
        }


def test_several_prompts_of_one_call_are_told_together(make_api: Any) -> None:
    api = serve(make_api, Engine("cmpl-mine-0", "cmpl-mine-1"))
    body = {"prompt": ["a", "b"], "max_tokens": 1}
    api.call("POST", "/v1/completions", json=body, headers={"x-request-id": "mine"})
    why = api.call("GET", "/v1/requests/mine/why").json()
    assert why["id"] == "cmpl-mine-0"
    assert [choice["index"] for choice in why["choices"]] == [0, 1]


def test_an_id_that_nobody_used_is_not_looked_for(make_api: Any) -> None:
    engine = Engine("cmpl-secret")
    reply = serve(make_api, engine).call("GET", "/v1/requests/secret/why")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "request_not_found"
    assert engine.asked == []


def test_a_request_that_no_engine_remembers_is_said_to_be_gone(make_api: Any) -> None:
    api = serve(make_api, Engine("other"))
    api.call(
        "POST",
        "/v1/completions",
        json={"prompt": "x", "max_tokens": 1},
        headers={"x-request-id": "mine"},
    )
    reply = api.call("GET", "/v1/requests/mine/why")
    assert reply.status_code == 404
    assert "ended more than ten minutes ago" in reply.json()["error"]["message"]


BLOCK = 4
SECRET = b"s" * 32


class Gate:
    """Holds steps up until it is opened."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._permits = threading.Semaphore(0)
        self.is_held = False

    def pass_on(self) -> None:
        """Let the step go on that is held up, if one is: permits must not gather, or an answer runs through."""
        if self.is_held:
            self.is_held = False
            self._permits.release()

    def open(self) -> None:
        self._opened.set()
        self._permits.release()

    def __call__(self, step: Step) -> None:
        if not (step.is_dry_run or self._opened.is_set()):
            self.is_held = True
            assert self._permits.acquire(timeout=60)


@asynccontextmanager
async def live(make_api: Any, scheduler: Scheduler, model: UniformModel, tiers: Any = None) -> AsyncIterator[Any]:
    """The API over an engine that runs."""
    clock = MonotonicClock()
    engine = AsyncEngine(EngineLoop(scheduler, model, clock, tiers), ByteTokenizer(), clock, vocab_size=258)
    (served,) = make_api().app._state.models
    served = replace(served, upstream=engine, explain=engine.explain)
    app = make_api(models=Models([served]), clock=clock).app
    await engine.start()
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client
    await engine.stop()


async def ask(client: httpx.AsyncClient, name: str, **body: Any) -> httpx.Response:
    reply = await client.post("/v1/completions", json=body, headers={"x-request-id": name})
    assert reply.status_code == 200, reply.text
    return reply


async def why(client: httpx.AsyncClient, name: str, reason: str) -> dict[str, Any]:
    """Ask until a request waits for that reason."""
    while True:
        reply = await client.get(f"/v1/requests/{name}/why")
        if reply.status_code == 200 and (told := reply.json()).get("choices", [{}])[0].get("reason") == reason:
            return dict(told)
        await asyncio.sleep(0)


def test_a_request_that_waits_for_a_place_below_says_for_how_much_and_how_long(make_api: Any, tmp_path: Path) -> None:
    clock, host = MonotonicClock(), HostPool(32, BLOCK * TOKEN_BYTES)
    disk = FaultyTransport(
        DiskTransport(tmp_path / "kv", 1 << 20, clock),
        lambda call: TransportFault(kind="hang") if call == "has" else None,
    )
    mover = Mover("disk", disk, FrameCodec(SECRET, bytes(16), host.block_bytes), host, clock)
    tiers = TierHierarchy(
        32, host.block_bytes, KeyChain(SECRET, bytes(16)), Places([mover]), cost=FixedCost(60.0), wait_s=60.0
    )
    limits = SchedulerLimits(max_num_seqs=4, max_step_tokens=64, max_context=64, max_waiting=9)
    scheduler = Scheduler(BlockPool(32), BLOCK, limits, tiers)
    model = UniformModel(num_blocks=32, block_size=BLOCK, vocab_size=258, host=host)

    async def story() -> None:
        async with live(make_api, scheduler, model, tiers) as client:
            asked = asyncio.ensure_future(
                ask(client, "mine", prompt="a headrace and a mill", max_tokens=3, ignore_eos=True)
            )
            told = await why(client, "mine", "load")
            (choice,) = told["choices"]
            assert (told["state"], choice["load_blocks"]) == ("waiting", 5)
            assert 0 < choice["load_left_s"] <= 60.0 * 20
            assert "disk may have 5 KV blocks of what it begins with" in told["sentence"]
            disk.release()
            assert (await asked).json()["usage"]["completion_tokens"] == 3

    asyncio.run(story())


def test_a_place_that_does_not_answer_is_named_and_its_blocks_are_computed(make_api: Any, tmp_path: Path) -> None:
    clock, host = MonotonicClock(), HostPool(32, BLOCK * TOKEN_BYTES)
    calls: list[str] = []
    disks_clock = VirtualClock()

    def fault(call: str) -> TransportFault | None:
        calls.append(call)
        return TransportFault(kind="hang") if len(calls) > 1 else None  # it is there when the server starts

    disk = FaultyTransport(DiskTransport(tmp_path / "kv", 1 << 20, clock), fault)
    mover = Mover("disk", disk, FrameCodec(SECRET, bytes(16), host.block_bytes), host, disks_clock, limit_s=0.5)
    tiers = TierHierarchy(
        32, host.block_bytes, KeyChain(SECRET, bytes(16)), Places([mover]), cost=FixedCost(60.0), wait_s=0.02
    )
    limits = SchedulerLimits(max_num_seqs=4, max_step_tokens=64, max_context=1024, max_waiting=9)
    scheduler = Scheduler(BlockPool(256), BLOCK, limits, tiers)
    gate = Gate()
    model = UniformModel(num_blocks=256, block_size=BLOCK, vocab_size=258, host=host, on_step=gate)

    async def story() -> None:
        async with live(make_api, scheduler, model, tiers) as client:
            asked = asyncio.ensure_future(
                ask(client, "mine", prompt="a headrace and a mill", max_tokens=40, ignore_eos=True)
            )
            state = "waiting"
            while state == "waiting":
                asked_why = asyncio.ensure_future(client.get("/v1/requests/mine/why"))
                while not asked_why.done():
                    for _ in range(50):  # so that the question is there before the step ends
                        await asyncio.sleep(0)
                    gate.pass_on()
                told = asked_why.result().json()
                state = told.get("state", state)  # it may not have come yet
            assert state == "running"
            assert told["choices"][0]["late_places"] == ["disk"]
            assert re.search(r"It waited \d+\.\d{3} s for disk, without an answer, and was computed", told["sentence"])
            gate.open()
            assert (await asked).json()["usage"]["completion_tokens"] > 0
            told = (await client.get("/v1/requests/mine/why")).json()
            assert told["late_places"] == ["disk"]
            assert "for disk, without an answer, and was computed instead" in told["sentence"]
            assert tiers.stats()[1].num_late == 1
            assert tiers.stats()[1].is_up
            disks_clock.advance(0.6)
            assert not tiers.stats()[1].is_up
            asked = asyncio.ensure_future(ask(client, "other", prompt="a mill and a headrace", max_tokens=1))
            assert (await asked).json()["usage"]["completion_tokens"] == 1
            told = (await client.get("/v1/requests/other/why")).json()
            assert "late_places" not in told, "nobody waits for a place that hangs"
            disk.release()

    asyncio.run(story())


def test_a_search_that_waits_for_room_for_all_its_beams_says_how_much_that_is(make_api: Any) -> None:
    limits = SchedulerLimits(max_num_seqs=3, max_step_tokens=64, max_context=64, max_waiting=9)
    scheduler = Scheduler(BlockPool(24), BLOCK, limits)
    gate = Gate()
    model = UniformModel(num_blocks=24, block_size=BLOCK, vocab_size=258, on_step=gate)

    async def story() -> None:
        async with live(make_api, scheduler, model) as client:
            first = asyncio.ensure_future(ask(client, "first", prompt="zyxwvut", max_tokens=40, ignore_eos=True))
            asked = asyncio.ensure_future(
                ask(client, "mine", prompt="abcdefgh", max_tokens=4, use_beam_search=True, best_of=3, n=2)
            )
            wanted = asyncio.ensure_future(why(client, "mine", "search"))
            while not wanted.done():
                for _ in range(50):  # the question comes before the step's end, so that few steps pass
                    await asyncio.sleep(0)
                gate.pass_on()
            told = wanted.result()
            assert [(choice["reason"], choice["beams"]) for choice in told["choices"]] == [("search", 3)] * 2
            # 13 tokens at the end: two blocks that the beams share, and two of each one's own.
            assert told["choices"][0]["blocks_needed"] == 8
            assert "3 places and 8 KV blocks; 2 and " in told["sentence"]
            gate.open()
            await first
            assert len((await asked).json()["choices"]) == 2

    asyncio.run(story())
