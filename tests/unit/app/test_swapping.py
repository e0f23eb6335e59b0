"""Weights are swapped under a running engine: real checkpoints, real engines, no server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.api import Models, PrefixBody, pin_prefix
from headrace.api.answers import Answer, collect
from headrace.app.hardware import detect
from headrace.app.loading import LoadedModel, load_model, open_model, served_model
from headrace.app.swapping import Swapper
from headrace.app.watchdog import Watchdog
from headrace.core.clock import MonotonicClock
from headrace.core.cuts import Cut
from headrace.core.errors import SwapRefused, UnknownModel, WeightsSwapped
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.core.settings import Settings, load
from headrace.engine.health import HealthLimits
from headrace.model.store import LocalModel
from headrace.obs import Metrics
from headrace.testing.checkpoints import write_checkpoint

PROMPT = tuple(range(40, 110))


def local(path: Path) -> LocalModel:
    return LocalModel(name=path.name, path=path, size_bytes=0, license=None, source=f"file:{path}")


class Stage:
    """What a server has, without the socket."""

    def __init__(self, settings: Settings, first: LoadedModel, metrics: Metrics, observer: Any) -> None:
        self.engines = [first]
        self.metrics = metrics
        self.metrics.add(observer, first.engine.snapshot)
        self.hardware = detect()
        self.models = Models([served_model(first, 1)])
        clock = MonotonicClock()
        watchdog = Watchdog(HealthLimits(), clock, on_stall=lambda name: None, on_dead=lambda reason: None)
        self.swapper = Swapper(
            settings,
            lambda source, progress: local(Path(source)),
            clock,
            models=self.models,
            metrics=metrics,
            watchdog=watchdog,
            engines=self.engines,
            watch=lambda model: None,
            detect=lambda: self.hardware,
        )

    def request(self, max_tokens: int = 8) -> Request:
        return Request(
            request_id=RequestId("r"),
            model="old",
            prompt=PROMPT,
            sampling=SamplingParams(temperature=0.0),
            stop=StopRules(max_tokens=max_tokens),
            arrival_s=time.monotonic(),
        )

    async def ask(self, max_tokens: int = 8) -> Answer:
        request = self.request(max_tokens)
        model: Any = self.models.find(None)
        return await collect(model.upstream, request)

    def counted(self) -> int:
        return self.metrics.snapshot_of("old")().generated_tokens


@asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    for number, name in enumerate(("old", "new")):
        write_checkpoint(tmp_path / name, seed=number)
    settings = load(
        environ={},
        overrides={
            "engine.backend": "reference",
            "engine.kv_memory_mib": 8,
            "engine.max_step_tokens": 64,
            "cache_dir": str(tmp_path / "cache"),
        },
    )
    metrics = Metrics()
    observer = metrics.observer("old")
    opened = open_model(local(tmp_path / "old"), settings, detect())
    first = load_model(opened, MonotonicClock(), observer)
    await first.engine.start()
    built = Stage(settings, first, metrics, observer)
    try:
        yield built
    finally:
        await asyncio.gather(*(model.engine.stop() for model in built.engines))


def text(answer: Answer) -> str:
    return "".join(choice.text for choice in answer.choices)


def test_new_requests_get_the_new_weights_and_running_ones_keep_the_old(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path) as world:
            before = await world.ask()
            assert (await world.ask()).usage.cached_tokens > 0
            whole = text(await world.ask(300))
            running = asyncio.create_task(world.ask(300))
            while not (world.engines[0].engine.snapshot().num_running or running.done()):
                await asyncio.sleep(0)
            old = world.engines[0]
            reply = await world.swapper.swap("old", str(tmp_path / "new"), 60.0)
            assert reply.previous_fingerprint == old.fingerprint != reply.system_fingerprint
            counted = world.counted()
            after = await world.ask()
            assert text(after) != text(before)
            assert after.usage.cached_tokens == 0
            assert world.counted() >= counted + 8
            assert text(await running) == whole
            async with asyncio.timeout(60):
                while len(world.engines) > 1:
                    await asyncio.sleep(0.01)
            assert old.engine.snapshot().is_dead
            assert world.counted() >= counted + 8
            back = await world.swapper.swap("old", str(tmp_path / "old"), 0.0)
            assert back.system_fingerprint == old.fingerprint
            assert text(await world.ask()) == text(before)

    asyncio.run(main())


def test_what_a_swap_cuts_off_is_told_so_and_can_be_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path) as world:
            old = world.engines[0]
            model: Any = world.models.find(None)
            prefix = PrefixBody(prompt=[40 + number % 60 for number in range(400)])

            async def keep() -> Any:
                return await pin_prefix(world.models.find_local(None), prefix, "p", time.monotonic(), 60.0)

            calls = [asyncio.create_task(call) for call in (world.ask(400), keep())]
            while not old.engine.snapshot().num_running:
                await asyncio.sleep(0)
            await old.engine.stop(cut=Cut.SWAP)
            for call in calls:
                with pytest.raises(WeightsSwapped, match="the weights of 'old' were swapped"):
                    await call
            with pytest.raises(WeightsSwapped, match="send it again"):
                await collect(model.upstream, world.request())
            await world.swapper.swap("old", str(tmp_path / "new"), 0.0)
            assert text(await world.ask())
            assert (await keep()).prompt_tokens == 400

    asyncio.run(main())


def test_a_swap_that_cannot_be_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path) as world:
            before = text(await world.ask())
            with pytest.raises(UnknownModel, match="'other'"):
                await world.swapper.swap("other", str(tmp_path / "new"), None)
            with pytest.raises(SwapRefused, match=r"keeps its weights.*does not exist"):
                await world.swapper.swap("old", str(tmp_path / "nowhere"), None)
            world.hardware = replace(world.hardware, memory_available=1 << 20)
            with pytest.raises(SwapRefused, match=r"needs \d+ MiB for weights.*1 MiB are available"):
                await world.swapper.swap("old", str(tmp_path / "new"), None)
            world.hardware = detect()
            # Not 0.0: the answer asked for below may still be running when the new weights are ready.
            first = asyncio.create_task(world.swapper.swap("old", str(tmp_path / "new"), 60.0))
            await asyncio.sleep(0)
            with pytest.raises(SwapRefused, match="are being swapped"):
                await world.swapper.swap("old", str(tmp_path / "new"), None)
            assert text(await world.ask()) == before
            await first
            assert text(await world.ask()) != before

    asyncio.run(main())
