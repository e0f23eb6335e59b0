"""Order between the host and the two queues of a device, on one that works as late and unluckily as marks allow."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from headrace.core.step import BlockCopy, CopyKind
from headrace.executor.cuda.host_pin import HostPin
from headrace.executor.cuda.queues import Mark, Queue
from headrace.executor.cuda.staging import Staging
from headrace.executor.cuda.tier_copies import TierCopies
from headrace.kv.transfer.host_pool import HostPool


class LateMark:
    def __init__(self, device: LateDevice, queue: Queue, place: int) -> None:
        self._device, self.queue, self.place = device, queue, place

    @property
    def is_passed(self) -> bool:
        return self._device.done[self.queue] >= self.place

    def synchronize(self) -> None:
        self._device.work_until(lambda: self.is_passed)

    def seconds_since(self, earlier: Mark) -> float:
        return 0.0


class LateDevice:
    """Queues whose work waits until the host waits, and is then done in a random order that the marks allow."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.work: dict[Queue, list[LateMark | Callable[[], object]]] = {queue: [] for queue in Queue}
        self.done = dict.fromkeys(Queue, 0)

    def run(self, queue: Queue, work: Callable[[], object]) -> None:
        self.work[queue].append(work)

    def mark(self, queue: Queue) -> LateMark:
        return LateMark(self, queue, len(self.work[queue]))

    def wait(self, queue: Queue, mark: Mark) -> None:
        assert isinstance(mark, LateMark)
        self.work[queue].append(mark)

    def work_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            ready = [queue for queue in Queue if self._can_go_on(queue)]
            assert ready, "queues wait for each other"
            queue = self.random.choice(ready)
            work = self.work[queue][self.done[queue]]
            if not isinstance(work, LateMark):
                with torch.inference_mode():
                    work()
            self.done[queue] += 1

    def finish(self) -> None:
        self.work_until(lambda: all(self.done[queue] == len(self.work[queue]) for queue in Queue))

    def _can_go_on(self, queue: Queue) -> bool:
        if self.done[queue] == len(self.work[queue]):
            return False
        work = self.work[queue][self.done[queue]]
        return not isinstance(work, LateMark) or work.is_passed


BLOCKS, SLOTS, SIZE = 12, 6, 64


@pytest.mark.parametrize("seed", range(40))
def test_copies_beside_the_steps_leave_the_bytes_of_copies_in_order(seed: int) -> None:
    draw = random.Random(seed)
    device = LateDevice(seed)
    pool = torch.arange(BLOCKS, dtype=torch.uint8)[:, None].repeat(1, SIZE)
    slots = [torch.full((SIZE,), 100 + i, dtype=torch.uint8) for i in range(SLOTS)]
    tiers = TierCopies(pool, device, lambda index: slots[index], most_buffers=3)
    blocks, held = list(range(BLOCKS)), [100 + i for i in range(SLOTS)]
    for step in range(8):
        copies, last = [], None
        for _ in range(draw.randrange(8)):
            kind = draw.choice(list(CopyKind))
            source = draw.randrange(SLOTS if kind is CopyKind.LOAD else BLOCKS)
            target = draw.randrange(SLOTS if kind is CopyKind.SAVE else BLOCKS)
            copies.append(BlockCopy(kind, source, target))
            value = held[source] if kind is CopyKind.LOAD else blocks[source]
            (held if kind is CopyKind.SAVE else blocks)[target] = value
        last = tiers.run(copies)
        # The rows of the step: they overwrite a block behind the copies.
        block = draw.randrange(BLOCKS)
        device.run(Queue.COMPUTE, lambda block=block, step=step: pool[block].fill_(200 + step))
        blocks[block] = 200 + step
        if last is not None and draw.random() < 0.5:
            last.synchronize()
            assert [int(slot[-1]) for slot in slots] == held
    device.finish()
    assert [int(block[-1]) for block in pool] == blocks
    assert [int(slot[-1]) for slot in slots] == held


@pytest.mark.parametrize("seed", range(10))
def test_a_step_reads_its_own_arrays_while_later_ones_are_written(seed: int) -> None:
    device = LateDevice(seed)
    staging = Staging(torch.device("cpu"), device, 256)
    seen: list[list[int]] = []
    wanted: list[list[int]] = []
    for step in range(12):
        arrays = [np.full(5, step, np.int32), np.full(8 if step % 5 else 90, -step, np.int32)]
        sent = staging.send(arrays)  # type: ignore[arg-type]
        device.run(Queue.COMPUTE, lambda sent=sent: seen.append([int(sent[0][-1]), int(sent[1][-1])]))
        wanted.append([step, -step])
    device.finish()
    assert seen == wanted


def test_what_a_graph_reads_stays_where_it_is() -> None:
    staging = Staging(torch.device("cpu"), LateDevice(0), 256)
    few = staging.send([np.zeros(4, np.int32), np.zeros(4, np.int32)])
    many = staging.send([np.zeros(4, np.int32), np.zeros(4000, np.int32)])
    again = staging.send([np.zeros(4, np.int32), np.zeros(4, np.int32)])
    assert few[0].data_ptr() == many[0].data_ptr() == again[0].data_ptr()
    assert few[1].data_ptr() == again[1].data_ptr()


class Driver:
    """Stands in for CUDA's runtime."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.held: dict[int, int] = {}
        self.is_blamed = False  # the next launch of a kernel is told of an error that is not its own

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        if self.code == 0:
            self.held[address] = num_bytes
        self.is_blamed = self.code != 0
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        del self.held[address]
        return 0

    def forget_error(self) -> None:
        self.is_blamed = False


def test_host_memory_is_locked_whole_and_let_go_once() -> None:
    pool = HostPool(3, 1000)
    driver = Driver(0)
    pin = HostPin(pool.whole(), driver)
    ((address, num_bytes),) = driver.held.items()
    slots = [np.frombuffer(pool.slot(i), np.uint8).ctypes.data for i in range(3)]
    assert all(address <= slot and slot + 1000 <= address + num_bytes for slot in slots)
    pin.release()
    pin.release()
    assert driver.held == {}


def test_memory_that_cannot_be_locked_is_a_warning_and_serves(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(712)
    pin = HostPin(memoryview(bytearray(3 << 20)), driver)
    pin.release()
    assert not driver.is_blamed
    assert "3 MiB of host memory" in caplog.text
    assert "lower engine.kv_ram_bytes" in caplog.text
