"""Where the money went: every request's charge and every nanosecond of the engines, append-only."""

from headrace.gateway.ledger.engine_account import Charge, EngineSpan
from headrace.gateway.ledger.recorder import LedgerRecorder
from headrace.gateway.ledger.report import (
    Balance,
    By,
    PoolLine,
    UsageLine,
    allocate,
    balances,
    pool,
    settlements,
    usage,
)

__all__ = [
    "Balance",
    "By",
    "Charge",
    "EngineSpan",
    "LedgerRecorder",
    "PoolLine",
    "UsageLine",
    "allocate",
    "balances",
    "pool",
    "settlements",
    "usage",
]
