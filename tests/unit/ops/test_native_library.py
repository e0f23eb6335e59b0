"""The loaded library: instruction sets can be forced, pools do their work with any thread count and rest when idle."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from headrace.core.errors import ConfigError
from headrace.ops.native.library import LIBRARY_PATH, load_failure

pytestmark = pytest.mark.skipif(load_failure() is not None, reason=f"no native library: {load_failure()}")
library = pytest.importorskip("headrace.ops.native.library")
linear = pytest.importorskip("headrace.ops.native.linear")


def _product(pool: object) -> np.ndarray:
    random = np.random.default_rng(0)
    shape = linear.WeightShape(format=linear.WeightFormat.I8, n=500, k=100)
    weight = linear.PackedMatrix.from_float(pool, shape, random.standard_normal((500, 100), np.float32))
    return linear.linear(pool, weight, random.standard_normal((9, 100), np.float32), repeats=20)


def test_the_best_instruction_set_is_the_default_and_every_one_can_be_forced() -> None:
    library.set_isa("auto")
    best = library.active_isa()
    assert library.available_isas()[0] == "generic"
    for isa in library.available_isas():
        library.set_isa(isa)
        assert library.active_isa() == isa
    library.set_isa("auto")
    assert library.active_isa() == best


def test_an_instruction_set_this_machine_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(ConfigError, match="generic"):
        library.set_isa("vax")
    missing = next(isa for isa in library.ISAS if isa not in library.available_isas())
    with pytest.raises(ConfigError, match=f"'{missing}' is not available"):
        library.set_isa(missing)


def test_the_names_are_the_librarys() -> None:
    known = (*library.ISAS, library.EMULATED_ISA)
    names = [library.library().hr_isa_name(i) for i in range(len(known))]
    assert tuple(name.decode() for name in names) == known
    assert library.library().hr_isa_name(len(known)) is None


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_same_product(threads: int) -> None:
    with library.Pool(1) as one, library.Pool(threads) as many:
        assert many.threads == threads == library.library().hr_pool_threads(many.handle)
        assert np.array_equal(_product(many), _product(one))


def test_two_callers_take_turns_on_one_pool() -> None:
    with library.Pool(2) as pool:
        expected = _product(pool)
        results: list[np.ndarray] = []
        callers = [threading.Thread(target=lambda: results.append(_product(pool))) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert all(np.array_equal(result, expected) for result in results)
        assert len(results) == 4


def test_an_idle_pool_uses_no_cpu() -> None:
    with library.Pool(3) as pool:
        _product(pool)
        still = threading.Event()
        used = []
        for _ in range(500):  # the first windows may hold the workers' last spins
            before = time.process_time()
            still.wait(0.02)
            used.append(time.process_time() - before)
            if used[-1] < 0.002:
                break
        assert used[-1] < 0.002, used


def test_threads_run_on_the_cpus_they_are_given() -> None:
    cpu = min(os.sched_getaffinity(0))
    before = set(os.listdir("/proc/self/task"))
    with library.Pool(3, cpus=(cpu, cpu, cpu)) as pool:
        _product(pool)
        workers = set(os.listdir("/proc/self/task")) - before
        assert len(workers) == 2
        assert all(os.sched_getaffinity(int(worker)) == {cpu} for worker in workers)
    until_s = time.monotonic() + 60
    while workers & set(os.listdir("/proc/self/task")):  # the kernel removes a thread a little after it was joined
        assert time.monotonic() < until_s


def test_bad_pools_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 threads"):
        library.Pool(0)
    with pytest.raises(ConfigError, match="2 CPUs for 3 threads"):
        library.Pool(3, cpus=(0, 1))
    pool = library.Pool(1)
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        _ = pool.handle


def test_the_library_carries_no_python_and_no_shared_cpp_runtime() -> None:
    needed = LIBRARY_PATH.read_bytes()
    assert b"libpython" not in needed
    assert b"libstdc++.so" not in needed
