"""The same answer cold, warm, alone, batched, in chunks and preempted: the reference executor behind the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.request import Reach, SamplingParams, SeqId, WantedReach
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing.checkpoints import Family, write_checkpoint
from tests.parity.test_golden_logits import opened

BLOCK = 4
SYSTEM = [(37 * i + 11) % 256 for i in range(22)]
PROMPTS = [[*SYSTEM, 1, 2], [*SYSTEM, 3], SYSTEM, [*SYSTEM[:13], 9, 9, 9], [5, 6, 7]]
PLANS = {  # pool blocks, rows, tokens in a step, cache
    "alone": (64, 1, 64, False),
    "batched": (64, 5, 256, False),
    "shared": (64, 5, 256, True),
    "chunked": (64, 5, 7, True),
    "preempted": (11, 5, 16, True),
}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_do_not_depend_on_cache_batch_chunks_or_preemption(family: Family, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / family, family)
    answers = {name: serve(path, *plan) for name, plan in PLANS.items()}
    for name, (cold, warm, num_hits, _) in answers.items():
        assert cold == answers["alone"][0], name
        assert warm == answers["alone"][0], name
        assert (num_hits > 0) == PLANS[name][3], name
    assert answers["preempted"][3] > 0


REACH = Reach(window=9, num_sinks=3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_with_sinks_and_a_window_do_not_depend_on_cache_batch_chunks_or_preemption(
    family: Family, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    answers = {name: serve(path, *plan, reach=REACH) for name, plan in PLANS.items()}
    for name, (cold, warm, num_hits, _) in answers.items():
        assert cold == answers["alone"][0], name
        assert warm == answers["alone"][0], name
        assert (num_hits > 0) == PLANS[name][3], name
    assert answers["alone"][0] != serve(path, *PLANS["alone"])[0]


MIXED = [WantedReach(window=9), None, WantedReach(window=4, num_sinks=6), WantedReach(window=21, num_sinks=0), None]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_of_sequences_with_windows_of_their_own_are_theirs_whoever_runs_beside_them(
    family: Family, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    answers = {name: serve(path, *plan, wanted=MIXED) for name, plan in PLANS.items()}
    for name, (cold, warm, num_hits, _) in answers.items():
        assert cold == answers["alone"][0], name
        assert warm == answers["alone"][0], name
        assert (num_hits > 0) == PLANS[name][3], name
    full, windowed = serve(path, *PLANS["alone"])[0], answers["alone"][0]
    for number, reach in enumerate(MIXED):
        assert (full[number] == windowed[number]) == (reach is None), "a window was given to another, or to nobody"
    by_server = serve(path, *PLANS["alone"], reach=Reach(window=9, num_sinks=4))[0]
    assert by_server[0] == windowed[0], "the server's window and a request's are the same thing"


def serve(
    path: Path,
    num_blocks: int,
    num_rows: int,
    num_tokens: int,
    cache: bool,
    reach: Reach | None = None,
    wanted: list[WantedReach | None] | None = None,
) -> tuple:
    """Return the answers of a first and a second round, the tokens hit and the preemptions."""
    executor = opened(path, num_blocks=num_blocks, block_size=BLOCK)
    limits = SchedulerLimits(
        max_num_seqs=num_rows,
        max_step_tokens=num_tokens,
        max_context=44,
        max_waiting=99,
        prefix_cache=cache,
        reach=reach,
    )
    scheduler = Scheduler(BlockPool(num_blocks), BLOCK, limits)
    outputs: dict[int, list[int]] = {}
    for turn in range(2):
        for number, prompt in enumerate(PROMPTS):
            sampling = SamplingParams(temperature=0.8, seed=number)
            own = None if wanted is None else wanted[number]
            scheduler.submit(Sequence(SeqId(turn * 10 + number), prompt, sampling, max_tokens=12, reach=own))
        while scheduler.has_work:
            step = scheduler.schedule(0.0)
            assert step is not None
            for event in scheduler.commit(step, executor.launch(step).result(), 0.0):
                if event.sample is not None:
                    outputs.setdefault(event.seq_id, []).append(event.sample.token_id)
            scheduler.check()
    executor.shutdown()
    rounds = [[outputs[turn * 10 + number] for number in range(len(PROMPTS))] for turn in range(2)]
    return *rounds, scheduler.totals.prefix_hits, scheduler.totals.num_preemptions
