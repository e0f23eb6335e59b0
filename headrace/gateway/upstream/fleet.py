"""All remote upstreams of this process: built from settings, shared by the pools of their models.

Owns the transport, the members and the retry account. Built by `app.serving` before the event loop runs; used and
closed on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from headrace.core.errors import ConfigError
from headrace.core.protocols import Clock
from headrace.core.upstream_settings import FailoverSettings, UpstreamSettings
from headrace.core.upstream_status import UpstreamStatus
from headrace.gateway.budgets.price import PriceOf
from headrace.gateway.upstream.address import check_headers, check_url
from headrace.gateway.upstream.anthropic import AnthropicAdapter
from headrace.gateway.upstream.breaker import Breaker
from headrace.gateway.upstream.keys import KeyRing
from headrace.gateway.upstream.member import Adapter, Member
from headrace.gateway.upstream.observed import Observed
from headrace.gateway.upstream.openai import OpenAIAdapter
from headrace.gateway.upstream.pool import Pool
from headrace.gateway.upstream.profiles import profiles
from headrace.gateway.upstream.retries import RetryAccount
from headrace.gateway.upstream.transport import Transport
from headrace.gateway.upstream.uncounted import Uncounted


class Fleet:
    """The upstreams of `settings`. Raises ConfigError for a URL that is none and for keys that cannot be read."""

    def __init__(
        self,
        settings: Mapping[str, UpstreamSettings],
        policy: FailoverSettings,
        clock: Clock,
        read_secret: Callable[[str], str],
        *,
        random: Random | None = None,
        price_of: PriceOf | None = None,
    ) -> None:
        self._settings = settings
        self._transport = Transport()
        self._retries = RetryAccount(policy.retry_ratio)
        self._policy = policy
        self._clock = clock
        self._random = random
        self._price_of = price_of
        self._members = {name: self._member(name, upstream, read_secret) for name, upstream in settings.items()}

    @property
    def models(self) -> list[str]:
        """List the public names, in the order of the settings."""
        return list(dict.fromkeys(model for upstream in self._settings.values() for model in upstream.models))

    def pool(self, model: str, observed: Observed | None = None) -> Pool:
        """Put the upstreams of a public name together; tell `observed` of its requests."""
        members = [member for member in self._members.values() if model in member.models]
        return Pool(members, self._policy, self._retries, self._clock, observed=observed, random=self._random)

    def root(self, model: str) -> str:
        """Return where a public name is served: names of upstreams, no addresses."""
        return "upstream:" + ",".join(name for name, upstream in self._settings.items() if model in upstream.models)

    def max_context(self, model: str) -> int | None:
        """Return the shortest context of a public name's upstreams, as far as the settings tell."""
        known = [u.max_context for u in self._settings.values() if model in u.models and u.max_context is not None]
        return min(known, default=None)

    def status(self) -> list[UpstreamStatus]:
        """Describe every upstream."""
        return [member.status() for member in self._members.values()]

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._transport.close()

    def _member(self, name: str, settings: UpstreamSettings, read_secret: Callable[[str], str]) -> Member:
        check_url(name, settings.url)
        check_headers(name, settings.headers)
        places = [settings.api_key] if isinstance(settings.api_key, str) else settings.api_key or []
        try:
            keys = KeyRing(places, read_secret, self._clock)
        except ConfigError as err:
            raise ConfigError(f"upstreams.{name}.api_key: {err.message}", param=f"upstreams.{name}.api_key") from err
        adapter, breaker = self._adapter(name, settings), Breaker(self._policy, self._clock)
        return Member(name, settings, adapter, keys, breaker, self._clock, Uncounted(self._price_of))

    def _adapter(self, name: str, settings: UpstreamSettings) -> Adapter:
        if profiles()[settings.profile].wire == "anthropic":
            return AnthropicAdapter(name, settings, self._transport)
        return OpenAIAdapter(name, settings, self._transport)
