"""What a GPU's errors mean to whoever runs the server.

Owns nothing. Called by `executor.cuda.executor` around everything that reaches the device.
After an error of the device nothing in its context works any more, in this process: the engine ends, and says so.
Running out of memory breaks nothing, but a step that does not fit today will not fit tomorrow.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from headrace.core.errors import EngineDead, OutOfMemory

_OF_THE_DEVICE = ("CUDA error", "Triton Error [CUDA]", "CUBLAS_STATUS", "CUDNN_STATUS", "NVML")


@contextmanager
def named_failures(doing: str | Callable[[], str], remedy: str) -> Iterator[None]:
    """Turn errors of the device into EngineDead, and lack of its memory into OutOfMemory.

    doing   what fails, for the message: "a step of 512 tokens"; or what says so, where nothing fails as a rule
    remedy  what to do when memory is short
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the GPU has no memory for {_said(doing)}; {remedy} ({_first_line(error)})") from error
    except RuntimeError as error:
        if not is_of_device(error):
            raise
        raise EngineDead(
            f"the GPU failed in {_said(doing)}: {_first_line(error)}; nothing works on it any more in this process, "
            "start it again; if that happens again, run it once with CUDA_LAUNCH_BLOCKING=1, which names the kernel"
        ) from error


def let_go_of_what_failed(error: BaseException) -> None:
    """Clear what the calls that ended in an error still hold: it may be gigabytes, and the error is told far above."""
    told: BaseException | None = error
    while told is not None:
        traceback.clear_frames(told.__traceback__)
        told = told.__cause__ or told.__context__


def is_of_device(error: RuntimeError) -> bool:
    """Tell errors of the device from errors in the host's code."""
    return isinstance(error, torch.AcceleratorError) or any(word in str(error) for word in _OF_THE_DEVICE)


def _said(doing: str | Callable[[], str]) -> str:
    return doing if isinstance(doing, str) else doing()


def _first_line(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
