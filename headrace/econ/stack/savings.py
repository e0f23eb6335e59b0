"""One improvement: what to do, what it would save a day, by which formula, on which evidence, and what would refute it.

Values. A saving is either money that is no longer paid (`is_cash`), or engine time that becomes free: that is worth its
price only when something else needs it, or a smaller machine does. The two are never added up, and savings overlap.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

import msgspec

from headrace.econ.stack.bill import CostLine
from headrace.econ.stack.break_even import BreakEven
from headrace.econ.stack.latency import Drivers
from headrace.econ.stack.provision import Provision
from headrace.econ.stack.rows import RequestRow, StepFit
from headrace.econ.stack.traffic import Traffic

DAY_NS = 86_400 * 10**9
HOUR_NS = 3_600 * 10**9


class Improvement(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. `effort_h` are hours of one person, a guess that is part of the rank."""

    title: str
    do: str
    evidence: str
    formula: str
    nano_per_day: int
    is_cash: bool
    effort_h: float
    wrong_if: str

    @property
    def rank(self) -> tuple[bool, float]:
        """Order: money first, then free time; each by saving per hour of effort."""
        return self.is_cash, self.nano_per_day / self.effort_h


class Evidence(NamedTuple):
    """What improvements are judged by. `covered_ns` is the time that the records cover."""

    requests: list[RequestRow]
    covered_ns: int
    lines: list[CostLine]
    provisions: list[Provision]
    comparisons: list[BreakEven]
    latencies: list[Drivers]
    traffic: Traffic
    fits: tuple[StepFit, StepFit] | None

    @property
    def days(self) -> float:
        """Return the days that the records cover."""
        return self.covered_ns / DAY_NS

    def per_day(self, nano: float) -> int:
        """Scale an amount of the period to a day."""
        return round(nano / self.days) if self.covered_ns else 0

    def local(self) -> list[tuple[CostLine, Provision]]:
        """Return the engines' lines, each with its life."""
        own = {each.configuration: each for each in self.provisions}
        return [(line, own[line.configuration]) for line in self.lines if line.configuration in own]


class NotJudged(msgspec.Struct, frozen=True):
    """Something that could be an improvement, and what the records lack to tell."""

    title: str
    lacks: str


def usd(nano: float) -> str:
    """Write an amount for people: cents, and more digits where there is less."""
    amount = nano / 1e9
    if abs(amount) >= 100:
        return f"${amount:,.0f}"
    if abs(amount) >= 0.1 or not nano:
        return f"${amount:,.2f}"
    return f"${Decimal(f'{amount:.3g}'):f}"


def span(ns: float) -> str:
    """Write a length of time for people."""
    seconds = ns / 1e9
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
