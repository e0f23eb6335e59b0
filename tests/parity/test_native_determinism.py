"""The same tokens cold, warm, alone, batched, in chunks and preempted, under either policy: native, on every ISA here.

No tolerance: the tokens are drawn with seeds from the logits, so one other bit in a logit would show sooner or later.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.core.request import SamplingParams, SeqId, WantedReach
from headrace.core.settings import KvDtype, PrefixPolicy, Quantization, SchedulingSettings
from headrace.executor.native import NativeExecutor
from headrace.kv import BlockPool
from headrace.model import build_program, open_checkpoint
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing.checkpoints import Family, write_checkpoint
from tests.parity.native_drive import ISAS, forced, needs_native

BLOCK, LENGTH = 16, 30
SYSTEM = [(37 * i + 11) % 256 for i in range(86)]
PROMPTS = [[*SYSTEM, 1, 2], [*SYSTEM, 3], SYSTEM, [*SYSTEM[:53], 9, 9, 9], [5, 6, 7]]


class Numbers(NamedTuple):
    """How weights and cache are kept."""

    quantization: Quantization = "auto"
    kv_dtype: KvDtype = "auto"


class Plan(NamedTuple):
    """How the same requests are served."""

    num_blocks: int = 64
    num_rows: int = 5
    num_tokens: int = 256
    has_cache: bool = True
    policy: PrefixPolicy = "lru"


ALONE = Plan(num_rows=1, has_cache=False)
PLANS = {
    "batched": Plan(has_cache=False),
    "shared": Plan(),
    "chunked": Plan(num_tokens=23),
    "in small chunks": Plan(num_rows=1, num_tokens=5, has_cache=False),
    "preempted": Plan(num_blocks=13, num_tokens=48),
    "preempted, by cost": Plan(num_blocks=13, num_tokens=48, policy="cost"),
}


class Served(NamedTuple):
    """The answers of a first and a second round, what was found and who was preempted."""

    cold: list[list[int]]
    warm: list[list[int]]
    num_hits: int
    num_preemptions: int


@needs_native
@pytest.mark.parametrize(
    ("family", "isa", "numbers"),
    [
        *(("llama", isa, numbers) for isa in ISAS for numbers in (Numbers(), Numbers("int8", "int8"))),
        ("gemma3", ISAS[-1], Numbers()),
        ("gemma3", ISAS[-1], Numbers(kv_dtype="int8")),
    ],
)
def test_tokens_do_not_depend_on_how_they_were_scheduled(
    family: Family, isa: str, numbers: Numbers, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    with forced(isa):
        alone = serve(path, ALONE, numbers)
        assert alone.cold == alone.warm
        for name, plan in PLANS.items():
            served = serve(path, plan, numbers)
            assert served.cold == alone.cold, name
            assert served.warm == alone.cold, name
            assert (served.num_hits > 0) == plan.has_cache, name
            assert (served.num_preemptions > 0) == name.startswith("preempted"), name


MIXED = (WantedReach(window=40), None, WantedReach(window=17, num_sinks=20), WantedReach(window=60, num_sinks=0), None)


@needs_native
@pytest.mark.parametrize(
    ("family", "numbers"), [("llama", Numbers()), ("llama", Numbers("int8", "int8")), ("gemma3", Numbers())]
)
def test_tokens_of_rows_with_windows_of_their_own_do_not_depend_on_the_others(
    family: Family, numbers: Numbers, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    alone = serve(path, ALONE, numbers, MIXED)
    for name, plan in PLANS.items():
        served = serve(path, plan, numbers, MIXED)
        assert served.cold == served.warm == alone.cold, name
        assert (served.num_hits > 0) == plan.has_cache, name
    full = serve(path, ALONE, numbers).cold
    assert [full[i] == alone.cold[i] for i in range(5)] == [reach is None or i > 3 for i, reach in enumerate(MIXED)]


def serve(path: Path, plan: Plan, numbers: Numbers, reaches: tuple[WantedReach | None, ...] = (None,) * 5) -> Served:
    """Serve all prompts twice, the second time with whatever the first has left in the cache."""
    with open_checkpoint(path) as checkpoint:
        executor = NativeExecutor(
            build_program(checkpoint.config),
            checkpoint,
            num_blocks=plan.num_blocks,
            block_size=BLOCK,
            threads=2,
            max_step_tokens=plan.num_tokens,
            quantization=numbers.quantization,
            kv_dtype=numbers.kv_dtype,
        )
    limits = SchedulerLimits(
        max_num_seqs=plan.num_rows,
        max_step_tokens=plan.num_tokens,
        max_context=160,
        max_waiting=99,
        prefix_cache=plan.has_cache,
        prefix_policy=plan.policy,
        policy=SchedulingSettings(output_ratio=0.0),
    )
    scheduler = Scheduler(BlockPool(plan.num_blocks), BLOCK, limits)
    outputs: dict[int, list[int]] = {}
    for turn in range(2):
        for number, prompt in enumerate(PROMPTS):
            sampling = SamplingParams(temperature=0.8, seed=number)
            seq_id = SeqId(turn * 10 + number)
            scheduler.submit(Sequence(seq_id, prompt, sampling, max_tokens=LENGTH, reach=reaches[number]))
        while scheduler.has_work:
            step = scheduler.schedule(0.0)
            assert step is not None
            for event in scheduler.commit(step, executor.launch(step).result(), 0.0):
                if event.sample is not None:
                    outputs.setdefault(event.seq_id, []).append(event.sample.token_id)
            scheduler.check()
    executor.shutdown()
    rounds = [[outputs[turn * 10 + number] for number in range(len(PROMPTS))] for turn in range(2)]
    return Served(*rounds, scheduler.totals.prefix_hits, scheduler.totals.num_preemptions)
