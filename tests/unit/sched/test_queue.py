"""The order of the waiting queue, seen through the candidates that it yields."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.sched import Sequence, SequenceStatus, Urgency
from headrace.sched.fairness import FairShares
from headrace.sched.queue import WaitingQueue


class Line:
    """A queue without a prefix cache, and what comes out of it."""

    def __init__(self, burst: int = 100, aging_s: float = 10.0, **weights: float) -> None:
        self.shares = FairShares(weights, burst)
        self.queue = WaitingQueue(None, 8, self.shares, aging_s)
        self.sequences: dict[int, Sequence] = {}

    def push(self, seq_id: int, now: float = 0.0, length: int = 10, **urgency: Any) -> Sequence:
        sequence = Sequence(SeqId(seq_id), [1] * length, SamplingParams(), max_tokens=5, urgency=Urgency(**urgency))
        sequence.queued_s = now
        sequence.account = self.shares.join(sequence.tenant)
        self.queue.push(sequence, now)
        self.queue.check()
        self.sequences[seq_id] = sequence
        return sequence

    def take(self, count: int, now: float = 0.0, *, cost: float = 0.0, background: bool = False) -> list[int]:
        """Admit the first `count`, each charged with `cost` tokens."""
        taken: list[int] = []
        for sequence in self.queue.candidates(now, background=background):
            if len(taken) == count:
                break
            self.queue.remove(sequence)
            sequence.status = SequenceStatus.RUNNING
            self.shares.charge(sequence.account, cost)
            taken.append(sequence.seq_id)
        self.queue.check()
        return taken


class Deadline(float):
    """A float whose comparisons are calls, so that they can be counted."""

    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        return float(self) == other

    def __lt__(self, other: float) -> bool:
        return float(self) < float(other)


def count_calls(work: Callable[[], object]) -> int:
    """Count the calls that something makes, of Python and of C."""
    calls = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_equals_go_in_order_of_arrival() -> None:
    line = Line()
    for seq_id in range(5):
        line.push(seq_id, float(seq_id))
    assert line.take(9, 5.0) == [0, 1, 2, 3, 4]
    assert len(line.queue) == 0


def test_the_class_decides_first_and_background_is_apart() -> None:
    line = Line()
    line.push(0, priority=1)
    line.push(1, priority=-3)
    line.push(2, is_background=True, priority=-9)
    line.push(3)
    assert line.take(9) == [1, 3, 0]
    assert line.take(9, background=True) == [2]


def test_the_earlier_deadline_goes_first_and_patience_has_an_end() -> None:
    line = Line()
    line.push(0, 0.0)
    line.push(1, 1.0, deadline_s=30.0)
    line.push(2, 2.0, deadline_s=20.0)
    line.push(3, 3.0, deadline_s=1e6)  # to ask for much time is not to be worse off than to ask for none
    line.push(4, 70.0, deadline_s=75.0)  # the first came more than a minute earlier
    assert line.take(9, 70.0) == [2, 1, 0, 3, 4]


def test_a_class_that_is_passed_over_rises_and_is_served_once() -> None:
    line = Line(aging_s=1.0)
    line.push(100, 0.0, priority=3)
    line.push(101, 0.0, priority=3)
    order = []
    for second in range(10):
        line.push(second, float(second))
        order += line.take(1, float(second))
    assert order.index(100) == 4  # after more than three seconds without service
    assert 101 in order


def test_beyond_the_burst_the_neediest_tenant_goes_first() -> None:
    line = Line(burst=100)
    for seq_id in range(8):
        line.push(seq_id, seq_id * 1e-3, tenant="flood")
    line.push(8, 1.0, tenant="light")
    line.push(9, 1.1, tenant="light")
    # 40 tokens each: the flood came first, and may be a burst ahead.
    assert line.take(10, 2.0, cost=40.0) == [0, 1, 2, 8, 3, 9, 4, 5, 6, 7]


def test_twice_the_weight_gets_twice_the_turns() -> None:
    line = Line(burst=1, double=2.0)
    for seq_id in range(12):
        line.push(seq_id, tenant="double")
        line.push(100 + seq_id, tenant="single")
    turns = line.take(12, cost=10.0)
    assert sum(seq_id < 100 for seq_id in turns) == 8


def test_a_preempted_sequence_goes_before_those_of_its_class_that_have_not_begun() -> None:
    line = Line()
    line.push(0, priority=-1)
    line.push(1)
    returned = line.push(2)
    line.queue.remove(returned)
    line.queue.put_back(returned)
    line.queue.check()
    assert line.take(9) == [0, 2, 1]


def test_one_that_is_left_where_it_is_does_not_come_again() -> None:
    line = Line()
    for seq_id in range(3):
        line.push(seq_id, priority=seq_id)
    assert [sequence.seq_id for sequence in line.queue.candidates(0.0)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("urgency", "num_ahead", "num_tokens"),
    [
        ({"tenant": "flood"}, 20, 200),
        ({"tenant": "light"}, 1, 10),  # one turn of the flood comes before its first
        ({"tenant": "flood", "priority": -1}, 0, 0),
        ({"tenant": "flood", "is_background": True}, 20, 200),
    ],
)
def test_what_is_ahead_of_a_newcomer_depends_on_who_it_is(
    urgency: dict[str, Any], num_ahead: int, num_tokens: int
) -> None:
    line = Line()
    for seq_id in range(20):
        line.push(seq_id, tenant="flood")
    newcomer = Sequence(SeqId(99), [1] * 10, SamplingParams(), max_tokens=5, urgency=Urgency(**urgency))
    crowd = line.queue.crowd(newcomer, 1.0)
    assert crowd.ahead == (num_ahead, num_tokens)
    is_beside = not newcomer.is_background
    assert (crowd.num_sequences, crowd.num_own) == ((20, 20 * (newcomer.tenant == "flood")) if is_beside else (0, 0))


def test_the_door_counts_without_looking_at_the_lines_of_others() -> None:
    """Whoever hands a request in holds the inbox meanwhile, which the engine thread takes once a step."""

    def calls(num_tenants: int) -> int:
        line = Line()
        for seq_id in range(num_tenants):
            sequence = Sequence(SeqId(seq_id), [1], SamplingParams(), max_tokens=5, urgency=Urgency(tenant=f"{seq_id}"))
            sequence.account = line.shares.join(sequence.tenant)
            line.queue.push(sequence, 0.0)
        crowd = line.queue.crowd(Urgency(tenant="new"), 1.0)
        assert (crowd.num_sequences, crowd.num_tokens, crowd.ahead.num_sequences) == (num_tenants,) * 3
        return count_calls(lambda: line.queue.crowd(Urgency(tenant="new"), 1.0))

    assert calls(1000) == calls(10)


def test_one_of_many_with_deadlines_leaves_without_a_look_at_the_rest() -> None:
    """Thousands that give up at once would else hold up the engine thread for seconds."""
    line = Line()
    sequences = []
    for seq_id in range(2000):
        urgency = Urgency(deadline_s=Deadline(seq_id / 100))
        sequence = Sequence(SeqId(seq_id), [1], SamplingParams(), max_tokens=5, urgency=urgency)
        sequence.account = line.shares.join(sequence.tenant)
        line.queue.push(sequence, 0.0)
        sequences.append(sequence)
    assert count_calls(lambda: line.queue.remove(sequences.pop())) < 200
    line.queue.check()
    for sequence in sequences[::-1]:
        line.queue.remove(sequence)
    assert len(line.queue) == 0


def test_counts_and_weights_follow_every_coming_and_going() -> None:
    line = Line(gold=3.0)
    first = line.push(0, tenant="gold")
    line.push(1, tenant="gold", length=4)
    line.push(2, tenant="a", deadline_s=5.0)
    line.push(3, tenant="b")
    assert line.queue.crowd(Urgency(tenant="a"), 1.0).ahead.num_sequences == 4  # 4 turns of others beside its own
    line.queue.remove(first)
    line.queue.put_back(first)  # preempted
    line.queue.check()
    crowd = line.queue.crowd(Urgency(tenant="gold"), 3.0)
    assert (crowd.num_sequences, crowd.num_tokens, crowd.num_own) == (4, 24, 1)
    for sequence in line.sequences.values():
        line.queue.remove(sequence)
        line.queue.check()
    assert line.queue.crowd(Urgency(), 1.0).ahead == (0, 0)
