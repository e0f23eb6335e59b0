"""The improvements that the records speak for, each judged by itself, and what the records cannot tell.

Pure functions of the evidence. A judge returns what it found worth doing, or says what it lacks; without either there
is nothing to gain. Thresholds are here, beside what they decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headrace.econ.stack import judges_of_machines, judges_of_requests
from headrace.econ.stack.savings import Evidence, Improvement, NotJudged

Judge = Callable[[Evidence], Iterator[Improvement | NotJudged]]
_JUDGES: tuple[Judge, ...] = (
    judges_of_machines.idle_machine,
    judges_of_machines.smaller_machine,
    judges_of_machines.elsewhere,
    judges_of_machines.bring_home,
    judges_of_machines.smaller_weights,
    judges_of_machines.smaller_kv,
    judges_of_requests.common_prefix,
    judges_of_requests.repeats,
    judges_of_requests.abandoned_answers,
    judges_of_requests.background,
)


def judge(evidence: Evidence) -> tuple[list[Improvement], list[NotJudged]]:
    """Return what is worth doing, the best first, and what could not be judged."""
    found: list[Improvement] = []
    lacking: list[NotJudged] = []
    for each in _JUDGES:
        for verdict in each(evidence):
            if isinstance(verdict, NotJudged):
                lacking.append(verdict)
            else:
                found.append(verdict)
    return sorted(found, key=lambda one: one.rank, reverse=True), lacking
