"""How a kernel is started, and what happens when one cannot be compiled: the plain torch op, with one warning.

Owns: the kernels that have failed in this process, by name, and whether kernels may be begun before the one in front
has ended. All of `ops.cuda` launches through `attempt`.
Invariant: a kernel that failed is never tried again; an error of the device (a bad address, a lost GPU) is no failure
to compile and is raised.
Kernels run on a GPU, or on the CPU in Triton's interpreter; on a CPU without it every op is the plain one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from subprocess import CalledProcessError

import torch
import triton
import triton.language as tl
from triton.errors import TritonError
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_log = logging.getLogger(__name__)
_failed: dict[str, str] = {}
_lock = threading.Lock()
_ahead = threading.local()

INTERPRETED = bool(triton.knobs.runtime.interpret)
_PLAIN_TOKENS = 512
_COMPILER_WORDS = ("PassManager", "Translate", "LLVM", "ptxas", "PTXAS", "C compiler")


def attempt(name: str, x: torch.Tensor, launch: Callable[[], object]) -> bool:
    """Launch the kernel called `name` for data on the device of `x`; False where the plain op has to do its work."""
    if name in _failed or not can_launch(x.device):
        return False
    try:
        launch()
    except (TritonError, RuntimeError, CalledProcessError) as error:
        if not _is_compiler(error):
            raise
        give_up(name, f"{type(error).__name__}: {_root(error)}")
        return False
    return True


def start(kernel: triton.JITFunction, grid: tuple[int, ...], *args: object, **options: object) -> None:
    """Launch a kernel; while kernels are compiled ahead, only see to it that it is."""
    if is_compiling_ahead():
        kernel.warmup(*args, grid=grid, **options)
    else:
        kernel[grid](*args, **options)


@contextmanager
def compiling_ahead(num_threads: int) -> Iterator[bool]:
    """Compile what this thread begins with `start` in this block, several kernels at a time, and run none of it; all is
    compiled at the end. What does not compile says so when it is launched. Other threads launch as ever: one may serve
    a model while this one warms up another. Yields whether kernels are compiled here at all."""
    if INTERPRETED:
        yield False
        return
    with ThreadPoolExecutor(num_threads, "kernel compiler") as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        _ahead.is_on = True
        try:
            yield True
        finally:
            _ahead.is_on = False


def is_compiling_ahead() -> bool:
    """Say whether what this thread launches now will not run."""
    return getattr(_ahead, "is_on", False)


@triton.jit
def take_turn(IS_EARLY: tl.constexpr):
    """Wait until all that earlier kernels wrote can be read, and let the next one be begun: it waits here in its turn.

    First in every program of a kernel that is launched early, before any access to memory and any way out: so a kernel
    that has ended says that all before it have."""
    if IS_EARLY:
        gdc_wait()
        gdc_launch_dependents()


def early() -> dict[str, bool]:
    """Return what a kernel that begins with `take_turn` is launched with."""
    return {"IS_EARLY": _is_early, "launch_pdl": _is_early}


def launch_early(*, is_early: bool) -> None:
    """From now on have kernels set up while the one in front still runs, or not. Takes compute capability 9.0."""
    global _is_early
    _is_early = is_early


def can_launch(device: torch.device) -> bool:
    """Say whether kernels run on a device: a GPU, or the CPU in the interpreter, or where launches are replaced."""
    return device.type == "cuda" or INTERPRETED or _is_replaced


def give_up(name: str, reason: str) -> None:
    """Leave a kernel's work to the plain op from now on."""
    with _lock:
        if name in _failed:
            return
        _failed[name] = reason
    lines = reason.strip().splitlines() or [""]
    _log.warning("kernel '%s' cannot be compiled here, a slower torch op takes its place: %s", name, lines[0][:300])


def pieces(num_tokens: int) -> Iterator[slice]:
    """Cut a batch for plain ops, which need the room of their tokens several times over."""
    return (slice(first, first + _PLAIN_TOKENS) for first in range(0, num_tokens, _PLAIN_TOKENS))


def failed_kernels() -> tuple[str, ...]:
    """Name the kernels that plain ops stand in for."""
    return tuple(sorted(_failed))


def _root(error: BaseException) -> BaseException:
    """Return what the compiler stumbled over first: around it, it says only where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_compiler(error: Exception) -> bool:
    """Tell what the compiler says from what the device says."""
    return isinstance(error, TritonError | CalledProcessError) or any(word in str(error) for word in _COMPILER_WORDS)


_is_early = False
_is_replaced = False


def compile_only() -> None:
    """From now on compile what is launched and run nothing: for whoever replaced Triton's driver, to read registers."""
    global _is_replaced
    _is_replaced = True
