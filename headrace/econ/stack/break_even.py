"""From which utilization on a machine of one's own is cheaper than somebody else's price.

Pure functions. The bill of a machine does not change with its load; what the same tokens cost elsewhere does, in
proportion. So the utilization where both are equal is utilization now · bill / price of the same tokens elsewhere.

    dollars per million = dollars per hour · 10⁶ / (3600 · tokens per busy second · utilization)
    volume per month    = dollars per month / dollars per million elsewhere

Says nothing of quality, engineers, redundancy, or of prices that change.
"""

from __future__ import annotations

import msgspec

from headrace.econ.stack.bill import CostLine
from headrace.econ.stack.configuration import Configuration
from headrace.econ.stack.provision import Provision
from headrace.econ.stack.rows import ReferencePrice

HOURS_PER_MONTH = 730
LEVELS = (1.0, 0.8, 0.6, 0.4, 0.2)


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration against one price.

    here_nano       the machine's whole bill of the period; elsewhere_nano: the same tokens at the price
    utilization     at which both are equal; above 1: at this speed never
    tokens_per_month, tokens_per_s  that the machine would have to serve, at this mix, to be as cheap
    busy_tokens_per_s  what it serves while it computes
    """

    configuration: Configuration
    reference: str
    here_nano: int
    elsewhere_nano: int
    utilization_now: float
    utilization: float
    tokens_per_month: float
    tokens_per_s: float
    busy_tokens_per_s: float


def usd_per_mtok(usd_per_hour: float, tokens_per_s: float, utilization: float = 1.0) -> float:
    """Return dollars per million tokens of a machine that serves `tokens_per_s` while it computes."""
    return usd_per_hour * 1e6 / (3600 * tokens_per_s * utilization)


def break_even_tokens(usd_per_month: float, usd_per_mtok_elsewhere: float) -> float:
    """Return the tokens a month from which a fixed bill is cheaper than a price."""
    return usd_per_month / usd_per_mtok_elsewhere * 1e6


def compare(line: CostLine, own: Provision, price: ReferencePrice) -> BreakEven | None:
    """Compare one configuration with one price; None without tokens, a rate, or a price that is above nothing."""
    rate = line.configuration.nano_per_hour
    elsewhere = price.nano(line.fresh_tokens, line.cached_tokens, line.output_tokens)
    if rate is None or not elsewhere or not own.busy_ns:
        return None
    volume = break_even_tokens(rate / 1e9 * HOURS_PER_MONTH, elsewhere / line.tokens / 1e3)
    return BreakEven(
        configuration=line.configuration,
        reference=price.name,
        here_nano=line.total_nano,
        elsewhere_nano=elsewhere,
        utilization_now=own.utilization,
        utilization=own.utilization * line.total_nano / elsewhere,
        tokens_per_month=volume,
        tokens_per_s=volume / (HOURS_PER_MONTH * 3600),
        busy_tokens_per_s=line.tokens / own.busy_ns * 1e9,
    )


def sensitivity(line: CostLine, own: Provision) -> list[tuple[float, float]]:
    """Return (utilization, dollars per million tokens) at this mix and speed; empty where the rate is not known."""
    rate = line.configuration.nano_per_hour
    if rate is None or not own.busy_ns or not line.tokens:
        return []
    speed = line.tokens / own.busy_ns * 1e9
    return [(level, usd_per_mtok(rate / 1e9, speed, level)) for level in LEVELS]
