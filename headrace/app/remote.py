"""Remote upstreams put into the server: a fleet from the settings, one served model per public name.

Owns the fleet of this process from its building to `close`; without upstreams in the settings there is none, and its
HTTP client is not even imported (0.25 s and 9 MB at start).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from headrace.api import RemoteModel
from headrace.core.errors import ConfigError
from headrace.core.protocols import Clock
from headrace.core.settings import Settings, read_secret
from headrace.core.upstream_status import UpstreamStatus
from headrace.obs import Metrics

if TYPE_CHECKING:
    from headrace.gateway.budgets.price import PriceOf
    from headrace.gateway.upstream import Fleet, UpstreamProbe


class RemoteSide:
    """The part of a server that other servers do. Raises ConfigError for upstreams that cannot be used as written."""

    def __init__(self, settings: Settings, clock: Clock, metrics: Metrics, price_of: PriceOf | None = None) -> None:
        self._fleet = open_fleet(settings, clock, price_of) if settings.upstreams else None
        self._clock = clock
        self._metrics = metrics
        metrics.add_upstreams(self.status)

    def models(self, created: int) -> Iterator[RemoteModel]:
        """Yield one served model per public name, each with metrics of its own."""
        if self._fleet is None:
            return
        from headrace.gateway.upstream import Observed

        for name in self._fleet.models:
            observer = self._metrics.observer(name)
            observed = Observed(observer, self._clock)
            pool = self._fleet.pool(name, observed)
            self._metrics.add(observer, observed.snapshot)
            yield RemoteModel(
                name=name,
                root=self._fleet.root(name),
                upstream=pool,
                created=created,
                max_context=self._fleet.max_context(name),
                count_tokens=pool.count_tokens,
            )

    def check_name(self, name: str) -> None:
        """Raise ConfigError if a model of this process has the name of a remote one."""
        if self._fleet is not None and name in self._fleet.models:
            raise ConfigError(
                f"'{name}' is a model here and a public name of {self._fleet.root(name)}; give one another name"
            )

    def status(self) -> list[UpstreamStatus]:
        """Describe every upstream."""
        return [] if self._fleet is None else self._fleet.status()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        if self._fleet is not None:
            await self._fleet.close()


async def probe_upstreams(settings: Settings) -> list[UpstreamProbe]:
    """Ask every upstream whether it can be used."""
    from headrace.gateway.upstream import probe_all

    return await probe_all(settings.upstreams, read_secret)


def open_fleet(settings: Settings, clock: Clock, price_of: PriceOf | None = None) -> Fleet:
    """Build the upstreams of `settings`. Raises ConfigError. `price_of` knows what callers pay, where accounts are."""
    from headrace.gateway.upstream import Fleet

    return Fleet(settings.upstreams, settings.failover, clock, read_secret, price_of=price_of)
