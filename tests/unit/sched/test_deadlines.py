from __future__ import annotations

from headrace.core.request import SamplingParams, SeqId
from headrace.sched import Sequence, Urgency
from headrace.sched.deadlines import Deadlines


def waiting(seq_id: int, deadline_s: float | None) -> Sequence:
    return Sequence(SeqId(seq_id), [1], SamplingParams(), max_tokens=1, urgency=Urgency(deadline_s=deadline_s))


def test_what_is_late_comes_out_once_the_earliest_first() -> None:
    deadlines = Deadlines()
    sequences = [waiting(0, 3.0), waiting(1, 1.0), waiting(2, None), waiting(3, 9.0)]
    live = {sequence.seq_id for sequence in sequences}
    for sequence in sequences:
        deadlines.watch(sequence, live)
    assert deadlines.pop_expired(1.0, live) == []
    assert [sequence.seq_id for sequence in deadlines.pop_expired(3.5, live)] == [1, 0]
    assert deadlines.pop_expired(3.5, live) == []


def test_one_that_has_its_first_token_or_has_ended_is_left_alone() -> None:
    deadlines = Deadlines()
    answered, ended = waiting(0, 1.0), waiting(1, 1.0)
    for sequence in (answered, ended):
        deadlines.watch(sequence, {0, 1})
    answered.first_token_s = 0.5
    assert deadlines.pop_expired(2.0, {0}) == []


def test_settled_deadlines_far_ahead_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.watch(waiting(number, 1e9 + number), {number})
    assert len(deadlines._heap) <= 256
