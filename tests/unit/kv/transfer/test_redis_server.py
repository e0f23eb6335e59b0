from __future__ import annotations

import errno

import pytest
import redis

from headrace.core.errors import ConfigError
from headrace.kv.transfer import RedisTransport
from tests.redis_server import has_redis, running_redis

needs_redis = pytest.mark.skipif(not has_redis(), reason="no redis-server on this machine")
KEYS = [bytes([number]) * 20 for number in range(7)]


def buffers(count: int) -> list[memoryview]:
    return [memoryview(bytearray(32)) for _ in range(count)]


@needs_redis
def test_frames_come_back_from_a_server_until_they_are_dropped() -> None:
    with running_redis() as server:
        transport = RedisTransport(server.url)
        assert transport.has(KEYS) == 0
        for number, key in enumerate(KEYS[:6]):
            assert transport.put(key, memoryview(bytearray([number]) * 32), 1.0)
        into = buffers(7)
        assert transport.has(KEYS) == 6
        assert transport.get(KEYS, into) == [32] * 6 + [None]
        assert [bytes(each) for each in into[:6]] == [bytes([number]) * 32 for number in range(6)]
        transport.drop(KEYS[0])
        assert transport.has(KEYS) == 0
        transport.put(KEYS[0], memoryview(bytearray(40)), 1.0)
        assert transport.get(KEYS[:1], buffers(1)) == [40]
        transport.close()


@needs_redis
def test_a_killed_server_is_an_os_error_and_a_new_one_is_found_again() -> None:
    with running_redis() as server:
        transport = RedisTransport(server.url)
        transport.put(KEYS[0], memoryview(bytearray(8)), 1.0)
        server.kill()
        with pytest.raises(OSError, match="Redis: ConnectionError"):
            transport.has(KEYS)
        server.start()
        assert transport.has(KEYS) == 0
        transport.close()


@needs_redis
def test_a_server_at_its_limit_is_full_and_still_read() -> None:
    with running_redis() as server:
        transport = RedisTransport(server.url)
        assert transport.put(KEYS[0], memoryview(b"frame"), 1.0)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")
        with pytest.raises(OSError, match="maxmemory is reached") as caught:
            transport.put(KEYS[1], memoryview(b"frame"), 1.0)
        assert caught.value.errno == errno.ENOSPC
        assert transport.get(KEYS[:1], buffers(1)) == [5]
        transport.close()


def test_a_url_that_is_none_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="not a Redis URL") as caught:
        RedisTransport("http://user:hunter2@host")
    assert "hunter2" not in str(caught.value)
