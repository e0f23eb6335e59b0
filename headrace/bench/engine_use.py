"""What a Headrace server did with the time of a run: read from its own counters before and after.

Answers where the time over HTTP goes: inside the steps of the engine, in planning them, or outside both; and how much
of a core the network thread takes from the engine. Other servers do not have these counters: nothing is said of them.
Called by `headrace bench http` around a load; nothing here runs while it is measured.
"""

from __future__ import annotations

import re
import time

import httpx
import msgspec

_TIMEOUT_S = 5.0
_STEPS, _LOOP = "headrace_device_seconds_total", "headrace_loop_seconds_total"
_NETWORK, _PROCESS = "headrace_network_thread_cpu_seconds_total", "process_cpu_seconds_total"
# One of the four, with no label or with the model's name alone.
_SAMPLE = re.compile(
    rf'^({"|".join((_STEPS, _LOOP, _NETWORK, _PROCESS))})(?:{{model_name="([^"]*)"}})? ([0-9.e+-]+)$', re.MULTILINE
)


class ServerTimes(msgspec.Struct, frozen=True):
    """Counters of a server, in seconds, and when they were read on this process's clock."""

    read_s: float
    device_s: float
    loop_s: float
    network_cpu_s: float
    process_cpu_s: float


class EngineUse(msgspec.Struct, frozen=True):
    """Shares of a run's wall time, from the scrape before it to the scrape after it.

    step_share      steps that compute, on the device's clock; 1 is an engine that never waits
    planning_share  the rest of the engine's loop: planning, committing, handing answers over
    network_cores   cores that the network thread took: tokenizing, writing streams
    process_cores   cores that the whole server took; threads that wait by spinning count as working
    client_cores    cores that this process, the load, took on the same machine
    """

    step_share: float
    planning_share: float
    network_cores: float
    process_cores: float
    client_cores: float


def read_times(url: str, model: str, api_key: str | None) -> ServerTimes | None:
    """Scrape the server at `url`, with or without `/v1`. None where it does not tell these counters of `model`."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    base = url.rstrip("/").removesuffix("/v1")
    try:
        answer = httpx.get(f"{base}/metrics", headers=headers, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return None
    if answer.status_code != 200:
        return None
    found: dict[str, float] = {}
    for name, named, value in _SAMPLE.findall(answer.text):
        if named in ("", model):
            found[name] = float(value)
    if not {_STEPS, _LOOP, _NETWORK, _PROCESS} <= found.keys():
        return None
    return ServerTimes(time.perf_counter(), found[_STEPS], found[_LOOP], found[_NETWORK], found[_PROCESS])


def engine_use(before: ServerTimes | None, after: ServerTimes | None, client_cpu_s: float) -> EngineUse | None:
    """Return what lies between two scrapes; None where one is missing or the server was started anew between them."""
    if before is None or after is None or after.process_cpu_s < before.process_cpu_s:
        return None
    wall_s = after.read_s - before.read_s
    device_s = after.device_s - before.device_s
    return EngineUse(
        step_share=device_s / wall_s,
        planning_share=max(0.0, after.loop_s - before.loop_s - device_s) / wall_s,
        network_cores=(after.network_cpu_s - before.network_cpu_s) / wall_s,
        process_cores=(after.process_cpu_s - before.process_cpu_s) / wall_s,
        client_cores=client_cpu_s / wall_s,
    )
