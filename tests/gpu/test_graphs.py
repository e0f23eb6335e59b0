"""What stands around the recording of a graph, on a stand-in for the streams and graphs of torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from headrace.executor.cuda import graphs as module
from headrace.executor.cuda.buckets import Bucket
from headrace.executor.cuda.graphs import Graphs, Outputs


class Stream:
    def __init__(self, device: torch.device | None = None) -> None:
        Device.num_streams += 1

    def wait_stream(self, other: Stream) -> None:
        return


class Device:
    """Keeps what is done on which stream, and whether that is recorded."""

    num_streams = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Device.num_streams = 0
        self.served_on = self.current = Stream()
        self.is_recording = False
        self.done: list[tuple[Stream, bool]] = []
        self.modes: list[tuple[str, object]] = []
        self.breaks = False
        self.allocates_to: list[object] = []  # pools of recordings that the allocator has not been told the end of
        device = self

        class Graph:
            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                device.is_recording = True
                device.modes.append((capture_error_mode, pool))
                device.allocates_to.append(pool)

            def capture_end(self) -> None:
                device.is_recording = False
                if device.breaks:
                    raise RuntimeError("operation failed due to a previous error during capture")
                device.allocates_to.remove(device.modes[-1][1])

            def replay(self) -> None:
                device.done.append((device.current, False))

        @contextmanager
        def stream(chosen: Stream) -> Iterator[None]:
            before, self.current = self.current, chosen
            try:
                yield
            finally:
                self.current = before

        def empty_cache() -> None:
            if self.allocates_to:
                raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

        monkeypatch.setattr(
            torch._C, "_cuda_endAllocateToPool", lambda index, pool: self.allocates_to.remove(pool), raising=False
        )
        for name, value in {
            "current_device": lambda: 0,
            "empty_cache": empty_cache,
            "Stream": Stream,
            "current_stream": lambda _: self.current,
            "stream": stream,
            "synchronize": lambda _: None,
            "CUDAGraph": Graph,
            "graph_pool_handle": object,
        }.items():
            monkeypatch.setattr(module.torch.cuda, name, value)

    def work(self) -> Outputs:
        self.done.append((self.current, self.is_recording))
        assert gc.isenabled() is not self.is_recording  # a graph that is collected meanwhile breaks the recording
        if self.is_recording and self.breaks:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1), None


def test_what_is_recorded_has_run_on_the_same_stream_before_and_one_stream_serves_all_kinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)
    graphs = Graphs(torch.device("cuda"))
    for size in (2, 1):
        for is_greedy in (True, False):
            device.done.clear()
            graphs.run((Bucket(size), is_greedy), device.work, is_dry_run=True)
            beside = device.done[0][0]
            assert device.done == [(beside, False)] * 2 + [(beside, True), (device.served_on, False)]
            assert beside is not device.served_on
    assert graphs.num_recorded == 4
    assert Device.num_streams == 2  # a library that multiplies keeps tens of MiB for each stream it has met
    (mode,) = set(device.modes)
    assert mode[0] == "thread_local"
    graphs.run((Bucket(1), True), device.work, is_dry_run=False)
    assert device.done[-1] == (device.served_on, False)


def test_what_cannot_be_recorded_runs_op_by_op(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(monkeypatch)
    device.breaks = True
    graphs = Graphs(torch.device("cuda"))
    for is_dry_run in (True, True, False):
        graphs.run((Bucket(1), True), device.work, is_dry_run=is_dry_run)
    graphs.give_back()
    assert graphs.num_recorded == 0
    assert not device.is_recording
    assert [is_recording for _, is_recording in device.done].count(True) == 1
    assert len([record for record in caplog.records if "cannot be recorded" in record.message]) == 1
