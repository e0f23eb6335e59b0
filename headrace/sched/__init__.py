"""Which tokens the next step computes: sequences, the queue, preemption and the finish rules."""

from headrace.sched.dry_run import dry_steps
from headrace.sched.limits import SchedulerLimits, SchedulerTotals
from headrace.sched.scheduler import Scheduler
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus, SequenceTiming, Urgency, sequences_of

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
    "sequences_of",
]
