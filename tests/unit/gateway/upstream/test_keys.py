"""Which of an upstream's keys is used, and when a bad one is tried again."""

from __future__ import annotations

from headrace.core.errors import ConfigError
from headrace.gateway.upstream.keys import KeyRing
from headrace.testing import VirtualClock


class Places:
    """Where keys are kept."""

    def __init__(self, **secrets: str) -> None:
        self.secrets = {f"file:{name}": secret for name, secret in secrets.items()}

    def __call__(self, place: str) -> str:
        if place not in self.secrets:
            raise ConfigError(f"no {place}")
        return self.secrets[place]


def secret(ring: KeyRing) -> str | None:
    key = ring.try_pick()
    return key.secret if key is not None else None


def test_the_first_key_is_preferred_and_the_next_stands_in() -> None:
    clock = VirtualClock()
    ring = KeyRing(["file:a", "file:b"], Places(a="A", b="B"), clock)
    first = ring.try_pick()
    assert first is not None
    ring.mark_throttled(first, 5.0)
    assert secret(ring) == "B"
    assert ring.num_throttled == 1
    clock.advance(5)
    assert secret(ring) == "A"


def test_a_dead_key_is_tried_again_after_a_minute() -> None:
    clock = VirtualClock()
    ring = KeyRing(["file:a"], Places(a="A"), clock)
    key = ring.try_pick()
    assert key is not None
    ring.mark_dead(key)
    assert secret(ring) is None
    assert ring.are_all_dead
    clock.advance(60)
    assert secret(ring) == "A"


def test_a_dead_key_that_was_renewed_in_its_file_is_used_at_once() -> None:
    places = Places(a="old")
    ring = KeyRing(["file:a"], places, VirtualClock())
    key = ring.try_pick()
    assert key is not None
    ring.mark_dead(key)
    places.secrets["file:a"] = "new"
    assert secret(ring) == "new"
    assert not ring.are_all_dead


def test_a_key_file_that_is_gone_leaves_the_key_dead() -> None:
    places = Places(a="old")
    ring = KeyRing(["file:a"], places, VirtualClock())
    key = ring.try_pick()
    assert key is not None
    ring.mark_dead(key)
    places.secrets.clear()
    assert secret(ring) is None


def test_no_key_shows_its_secret() -> None:
    ring = KeyRing(["file:a"], Places(a="topsecret"), VirtualClock())
    assert "topsecret" not in repr(ring.try_pick())


def test_a_server_that_wants_no_key_gets_none() -> None:
    ring = KeyRing([], Places(), VirtualClock())
    key = ring.try_pick()
    assert key is not None
    assert key.secret is None
    assert len(ring) == 0
