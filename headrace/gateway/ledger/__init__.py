"""Where the money went: every request's charge and every nanosecond of the engines, append-only."""

from headrace.gateway.ledger.balance import Balance, balances
from headrace.gateway.ledger.course import Course, Stopwatch
from headrace.gateway.ledger.digests import Digests, read_digest_key
from headrace.gateway.ledger.engine_account import Charge
from headrace.gateway.ledger.recorder import LedgerRecorder
from headrace.gateway.ledger.refusals import RefusalRow
from headrace.gateway.ledger.report import (
    By,
    PoolLine,
    UsageLine,
    allocate,
    pool,
    reasons,
    refusals,
    settlements,
    usage,
)

__all__ = [
    "Balance",
    "By",
    "Charge",
    "Course",
    "Digests",
    "LedgerRecorder",
    "PoolLine",
    "RefusalRow",
    "Stopwatch",
    "UsageLine",
    "allocate",
    "balances",
    "pool",
    "read_digest_key",
    "reasons",
    "refusals",
    "settlements",
    "usage",
]
