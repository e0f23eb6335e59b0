"""Where a server says the time of a run went."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from headrace.bench import engine_use as module
from headrace.bench.engine_use import ServerTimes, engine_use, read_times

SCRAPE = """\
headrace_device_seconds_total{model_name="m"} 8.0
headrace_device_seconds_total{model_name="other"} 99.0
headrace_loop_seconds_total{model_name="m"} 9.0
headrace_network_thread_cpu_seconds_total 0.5
process_cpu_seconds_total 20.0
"""


def times(**changes: float) -> ServerTimes:
    values = {"read_s": 0.0, "device_s": 0.0, "loop_s": 0.0, "network_cpu_s": 0.0, "process_cpu_s": 0.0}
    return ServerTimes(**{**values, **changes})


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    def set_answer(status: int, text: str) -> None:
        monkeypatch.setattr(module.httpx, "get", lambda *_, **__: httpx.Response(status, text=text))

    return set_answer


def test_time_goes_to_steps_between_them_and_to_cores() -> None:
    after = times(read_s=10.0, device_s=8.0, loop_s=9.0, network_cpu_s=0.5, process_cpu_s=18.0)
    use = engine_use(times(), after, client_cpu_s=0.2)
    assert use is not None
    assert (use.step_share, use.planning_share) == (0.8, 0.1)
    assert (use.network_cores, use.process_cores, use.client_cores) == (0.05, 1.8, 0.02)


def test_a_server_that_was_started_anew_in_between_is_not_summed_up() -> None:
    assert engine_use(times(process_cpu_s=9.0), times(read_s=1.0, process_cpu_s=1.0), 0.0) is None
    assert engine_use(None, times(), 0.0) is None


def test_only_the_counters_of_the_asked_model_are_read(answer: Callable[[int, str], None]) -> None:
    answer(200, SCRAPE)
    found = read_times("http://127.0.0.1:1/v1", "m", None)
    assert found is not None
    assert (found.device_s, found.loop_s, found.network_cpu_s, found.process_cpu_s) == (8.0, 9.0, 0.5, 20.0)


@pytest.mark.parametrize(
    ("status", "text"), [(404, SCRAPE), (200, "<html>"), (200, "up 1\n"), (200, SCRAPE.replace('"m"', '"n"'))]
)
def test_servers_without_these_counters_say_nothing(answer: Callable[[int, str], None], status: int, text: str) -> None:
    answer(status, text)
    assert read_times("http://127.0.0.1:1", "m", None) is None


def test_a_server_that_does_not_answer_says_nothing() -> None:
    assert read_times("http://127.0.0.1:1", "m", None) is None
