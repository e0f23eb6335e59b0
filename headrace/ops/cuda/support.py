"""Whether this machine has a GPU that the cuda backend can use, and what is wrong if not. Free of torch until asked.

Owns nothing. Called by whoever chooses a backend, and by the plan for the memory that is free.
Invariant: on a machine without an NVIDIA device torch is never imported by asking.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # Linux; Windows' subsystem for it
_LEAST_TORCH, _LEAST_TRITON = (2, 11), (3, 6)
_LEAST_CAPABILITY = (8, 0)  # bf16 matrix units
_INSTALL = "pip install 'headrace[gpu]'"


class DeviceFacts(NamedTuple):
    """One GPU: its name, compute capability, and memory in bytes."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int


def has_device() -> bool:
    """Say whether the system shows an NVIDIA device. Cost: a look at two paths."""
    return any(Path(path).exists() for path in _DEVICES)


def problem() -> str | None:
    """Say why kernels cannot run on a GPU here, and what to do; None if they can."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed: {_INSTALL}"
    if not has_device():
        return "this machine shows no NVIDIA GPU (no /dev/nvidiactl): install its driver, or use 'native'"
    import torch
    import triton

    for name, version, least in (
        ("torch", torch.__version__, _LEAST_TORCH),
        ("triton", triton.__version__, _LEAST_TRITON),
    ):
        if (problem := too_old(name, str(version), least)) is not None:
            return problem
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install a CUDA build of torch, then {_INSTALL}"
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no usable GPU: its CUDA {torch.version.cuda} may be newer than the "
            "driver (see nvidia-smi), or CUDA_VISIBLE_DEVICES hides every GPU"
        )
    return unfit(device_facts())


def too_old(name: str, version: str, least: tuple[int, int]) -> str | None:
    """Say that a package is older than what kernels are written for; None if it is not."""
    parts = [int(part) if part.isdigit() else 0 for part in version.split("+")[0].split(".")[:2]]
    if tuple(parts) >= least:
        return None
    return f"{name} is {version}; the cuda backend needs {least[0]}.{least[1]} or newer: pip install -U {name}"


def unfit(facts: DeviceFacts) -> str | None:
    """Say why a GPU is too old; None if it is not."""
    if facts.capability >= _LEAST_CAPABILITY:
        return None
    major, minor = facts.capability
    return (
        f"{facts.name} has compute capability {major}.{minor}; the cuda backend computes in bf16, which takes 8.0 "
        "(Ampere) or newer: use 'native'"
    )


def device_facts() -> DeviceFacts:
    """Look at the current GPU. Cost: makes a CUDA context, some 300 MiB of its memory and a second."""
    import torch

    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    return DeviceFacts(torch.cuda.get_device_name(), (major, minor), free, total)
