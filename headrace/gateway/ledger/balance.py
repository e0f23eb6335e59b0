"""Whether the ledger adds up: each engine's life against its parts, and its bill against the machine's rate.

Owns the check. Reads only. Sums are the database's, in whole nanoseconds and nano-dollars.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.econ import cost_of_time
from headrace.gateway.store import Database

_PARTS = "loading_ns + recomputed_ns + abandoned_ns + idle_ns + cached_ns"
_SPANS = (
    "SELECT engine, model, SUM(total_ns) AS total_ns, SUM(requests_ns) AS requests_ns, "
    f"SUM(total_ns - requests_ns - ({_PARTS})) AS unexplained_ns, SUM({_PARTS}) AS pool_ns, "
    "SUM(pool_nano + COALESCE(cached_nano, 0)) AS pool_nano, MIN(nano_per_hour) AS nano_per_hour "
    "FROM engine_spans GROUP BY engine, model ORDER BY engine"
)
_CLAIMS = (
    "SELECT engine, SUM(engine_ns) AS engine_ns, SUM(machine_nano) AS machine_nano "
    "FROM settlements WHERE engine IS NOT NULL GROUP BY engine"
)


class Balance(NamedTuple):
    """Whether one engine's life adds up. All differences are 0 once its requests have ended.

    unexplained_ns  its time less all of its parts
    unsettled_ns    of requests: not in any settled row yet
    bill_nano       what settled requests and the pool cost together; None where the machine's rate is not known
    unbilled_nano   the same time at the machine's rate, less the bill
    """

    engine: str
    model: str
    total_ns: int
    unexplained_ns: int
    unsettled_ns: int
    bill_nano: int | None
    unbilled_nano: int

    @property
    def is_wrong(self) -> bool:
        """Say whether something is missing or counted twice; what is not settled yet is neither."""
        return self.unexplained_ns != 0 or self.unsettled_ns < 0 or self.unbilled_nano != 0


async def balances(database: Database) -> list[Balance]:
    """Check every engine's life that is in the ledger."""
    async with database.transaction(writes=False) as tx:
        spans = await tx.fetch(_SPANS)
        claims = {str(row["engine"]): row for row in await tx.fetch(_CLAIMS)}
    found: list[Balance] = []
    for span in spans:
        claim = claims.get(str(span["engine"]), {})
        settled_ns, pool_ns = _whole(claim.get("engine_ns")), _whole(span["pool_ns"])
        rate = span["nano_per_hour"]
        bill_nano = None if rate is None else _whole(claim.get("machine_nano")) + _whole(span["pool_nano"])
        found.append(
            Balance(
                engine=str(span["engine"]),
                model=str(span["model"]),
                total_ns=_whole(span["total_ns"]),
                unexplained_ns=_whole(span["unexplained_ns"]),
                unsettled_ns=_whole(span["requests_ns"]) - settled_ns,
                bill_nano=bill_nano,
                unbilled_nano=0 if bill_nano is None else cost_of_time(settled_ns + pool_ns, _whole(rate)) - bill_nano,
            )
        )
    return found


def _whole(value: object) -> int:
    """Return a sum: Postgres gives decimals for sums of BIGINT, both give nothing for nothing."""
    return 0 if value is None else int(str(value))
