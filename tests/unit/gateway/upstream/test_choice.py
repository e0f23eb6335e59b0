"""Who gets a request, over many draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from headrace.core.upstream_settings import Choice
from headrace.gateway.upstream.choice import Chooser
from headrace.gateway.upstream.retries import RetryAccount


@dataclass
class Server:
    name: str
    weight: float = 1.0
    in_flight: int = 0
    ttft_s: float | None = None


def shares(rule: Choice, *servers: Server, draws: int = 2000) -> dict[str, float]:
    chooser = Chooser(rule, Random(1))
    counts = Counter(chooser.choose(servers).name for _ in range(draws))
    return {server.name: counts[server.name] / draws for server in servers}


def test_weighted_follows_the_weights() -> None:
    found = shares("weighted", Server("a", 3.0), Server("b", 1.0, in_flight=0))
    assert 0.7 < found["a"] < 0.8


def test_least_load_prefers_the_idle_one_of_two() -> None:
    assert shares("least_load", Server("a", in_flight=5), Server("b"))["b"] == 1.0


def test_least_load_counts_load_per_weight() -> None:
    assert shares("least_load", Server("a", 10.0, in_flight=5), Server("b", in_flight=1))["a"] == 1.0


def test_latency_prefers_the_quick_and_tries_the_unknown() -> None:
    slow, quick, unknown = Server("slow", ttft_s=1.0), Server("quick", ttft_s=0.1), Server("unknown")
    assert shares("latency", slow, quick)["quick"] == 1.0
    assert shares("latency", quick, unknown)["unknown"] == 1.0


def test_two_choices_keep_load_even() -> None:
    servers = [Server(str(i)) for i in range(8)]
    chooser = Chooser("least_load", Random(3))
    for _ in range(800):
        chooser.choose(servers).in_flight += 1
    assert max(server.in_flight for server in servers) - min(server.in_flight for server in servers) <= 6


def test_retries_are_a_share_of_requests_beyond_the_first_few() -> None:
    account = RetryAccount(0.1)
    granted = 0
    for _ in range(1000):
        account.earn()
        granted += account.try_spend()
    assert 100 <= granted <= 110


def test_a_ratio_of_zero_grants_nothing() -> None:
    account = RetryAccount(0.0)
    account.earn()
    assert not account.try_spend()
