from __future__ import annotations

from headrace.core.request import SamplingParams, SeqId
from headrace.kv import BlockPool
from headrace.sched import Sequence, Urgency
from headrace.sched.victims import choose_victim


def running(pool: BlockPool, seq_id: int, num_computed: int, num_blocks: int, **urgency: object) -> Sequence:
    sequence = Sequence(SeqId(seq_id), [0] * 99, SamplingParams(), max_tokens=9, urgency=Urgency(**urgency))  # type: ignore[arg-type]
    blocks = pool.allocate(num_blocks)
    assert blocks is not None
    sequence.blocks, sequence.num_computed = blocks, num_computed
    return sequence


def test_least_to_compute_again_per_block_gives_way() -> None:
    pool = BlockPool(20)
    dear, cheap, small = running(pool, 0, 40, 4), running(pool, 1, 10, 4), running(pool, 2, 9, 1)
    assert choose_victim([small, cheap, dear], pool, 8) is cheap


def test_background_gives_way_first_then_the_lower_class() -> None:
    pool = BlockPool(30)
    ordinary = running(pool, 0, 1, 8)
    late = running(pool, 1, 60, 2, priority=5)
    behind = running(pool, 2, 99, 1, is_background=True)
    assert choose_victim([ordinary, late, behind], pool, 8) is behind
    assert choose_victim([ordinary, late], pool, 8) is late


def test_nobody_gives_way_in_flight_and_sharers_only_when_nothing_else_helps() -> None:
    pool = BlockPool(20)
    flying, sharer, owner = running(pool, 0, 1, 4), running(pool, 1, 1, 2), running(pool, 2, 50, 1)
    flying.num_in_flight = 1
    pool.share(sharer.blocks)
    assert choose_victim([flying, sharer, owner], pool, 8) is owner
    assert choose_victim([flying, sharer], pool, 8) is sharer
    assert choose_victim([flying], pool, 8) is None
