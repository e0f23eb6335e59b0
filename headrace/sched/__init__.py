"""Which tokens the next step computes: sequences, the queue, preemption and the finish rules."""

from headrace.sched.beams import num_offered
from headrace.sched.choices import sequences_of
from headrace.sched.dry_run import dry_steps
from headrace.sched.limits import SchedulerLimits, SchedulerTotals
from headrace.sched.scheduler import Scheduler
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus, SequenceTiming, Urgency

__all__ = [
    "Scheduler",
    "SchedulerLimits",
    "SchedulerTotals",
    "Sequence",
    "SequenceEvent",
    "SequenceStatus",
    "SequenceTiming",
    "Urgency",
    "dry_steps",
    "num_offered",
    "sequences_of",
]
