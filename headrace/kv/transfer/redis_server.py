"""A Redis server as a place for KV blocks that several machines share. The only import of `redis`.

Owns one connection. Blocks expire after `ttl_s` without use; how much the server keeps is its own `maxmemory`.
Invariant: every call ends within the time limits of the socket; whatever goes wrong is an OSError, so that callers
tell a place that cannot be reached from one that has nothing. The URL may hold a password and is shown nowhere.
Implements `core.protocols.Transport`; used by one I/O thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from headrace.core.errors import ConfigError

if TYPE_CHECKING:
    import redis

T = TypeVar("T")
_TIMEOUT_S = 2.0
_CONNECT_TIMEOUT_S = 1.0
_PREFIX = b"headrace:kv:"
_TOGETHER = 4  # blocks asked for in one round trip
TTL_S = 24 * 3600


class RedisTransport:
    """Keeps frames on a server. Raises ConfigError for a URL that is none, or when the package is not installed."""

    def __init__(self, url: str, *, ttl_s: int = TTL_S) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ModuleNotFoundError as error:
            raise ConfigError(
                "engine.kv_redis_url is set and the package 'redis' is not installed; pip install 'headrace[redis]'",
                param="engine.kv_redis_url",
            ) from error
        self.num_bytes = 0  # the server knows, not we
        self._failure: type[Exception] = redis.RedisError
        self._is_full: type[Exception] = redis.exceptions.OutOfMemoryError
        self._ttl_s = ttl_s
        try:
            self._client: redis.Redis = redis.Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise ConfigError(
                "engine.kv_redis_url is not a Redis URL; write redis://host:6379/0", param="engine.kv_redis_url"
            ) from error

    def has(self, keys: Sequence[bytes]) -> int:
        """Count the leading keys that the server has; one round trip."""
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.exists(_PREFIX + key)
        found = self._try(pipe.execute)
        return next((i for i, is_there in enumerate(found) if not is_there), len(keys))

    def get(self, keys: Sequence[bytes], into: Sequence[memoryview]) -> list[int | None]:
        """Read one value into each buffer; return their bytes, None where there is no such key."""
        sizes: list[int | None] = []
        for first in range(0, len(keys), _TOGETHER):
            pipe = self._client.pipeline(transaction=False)
            for key in keys[first : first + _TOGETHER]:
                pipe.getex(_PREFIX + key, ex=self._ttl_s)
            for value in self._try(pipe.execute):
                sizes.append(_place(value, into[len(sizes)]))
        return sizes

    def put(self, key: bytes, frame: memoryview, saves_s: float) -> bool:
        """Set a value; what it is worth is for the server's own eviction to find out."""
        self._try(lambda: self._client.set(_PREFIX + key, frame, ex=self._ttl_s))
        return True

    def drop(self, key: bytes) -> None:
        """Remove a key, if it is there."""
        self._try(lambda: self._client.delete(_PREFIX + key))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _try(self, call: Callable[[], T]) -> T:
        """Make a call whose failures are OSErrors, without anything that the URL says."""
        try:
            return call()
        except self._is_full as error:
            raise OSError(errno.ENOSPC, "Redis: maxmemory is reached") from error
        except self._failure as error:
            raise ConnectionError(f"Redis: {type(error).__name__}") from error


def _place(value: bytes | None, into: memoryview) -> int | None:
    """Copy a value into its buffer if it fits."""
    if value is None:
        return None
    if len(value) <= into.nbytes:
        into[: len(value)] = value
    return len(value)
