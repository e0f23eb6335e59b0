"""Whether this machine has a GPU that the cuda backend can use, and what is wrong if not. Free of torch until asked.

Owns nothing. Called by whoever chooses a backend, and by the plan for the memory that is free.
Invariant: on a machine without an NVIDIA device torch is never imported by asking.
In a container the device files are what counts: the variable NVIDIA_VISIBLE_DEVICES is set in images of CUDA whether or
not there is a GPU, and /proc/driver/nvidia is the host's.
"""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

from headrace.core.settings import Quantization, names_c_compiler

_ROOT = Path("/")
_DEVICES = ("dev/nvidiactl", "dev/nvidia[0-9]*", "dev/dxg", "dev/nvhost-gpu")  # Linux; Windows' subsystem; Jetson
_DRIVER = "proc/driver/nvidia/version"
_LEAST_TORCH, _LEAST_TRITON = (2, 11), (3, 6)
_LEAST_CAPABILITY = (8, 0)  # bf16 matrix units
_FP8_CAPABILITY = (8, 9)
_EARLY_CAPABILITY = (9, 0)  # programmatic dependent launch
_INSTALL = "pip install 'headrace[gpu]'"


class DeviceFacts(NamedTuple):
    """One GPU: its name, compute capability, and memory in bytes."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int


def has_device() -> bool:
    """Say whether the system shows an NVIDIA device. Cost: a look at a few paths."""
    return any(next(_ROOT.glob(pattern), None) is not None for pattern in _DEVICES)


def problem() -> str | None:
    """Say why kernels cannot run on a GPU here, and what to do; None if they can."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed: {_INSTALL}"
    if not has_device():
        if (_ROOT / _DRIVER).exists():
            return (
                "the host has an NVIDIA driver, but this container was given no GPU (no /dev/nvidiactl): start it with "
                "'--gpus all', in Kubernetes with a limit for nvidia.com/gpu, or use 'native'"
            )
        return "this machine shows no NVIDIA GPU (no /dev/nvidiactl): install its driver, or use 'native'"
    if (missing_tool := _missing_compiler()) is not None:
        return missing_tool
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


def _missing_compiler() -> str | None:
    """Say that Triton cannot build what starts its kernels: C code that includes Python.h."""
    if not names_c_compiler() and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "Triton finds no C compiler, which it starts kernels with: apt-get install gcc, or set CC"
    scheme = sysconfig.get_default_scheme()
    headers = Path(sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"])
    if not (headers / "Python.h").exists():
        return f"Triton needs the headers of Python, and {headers} has no Python.h: apt-get install python3-dev"
    return None


def unfit(facts: DeviceFacts) -> str | None:
    """Say why a GPU is too old; None if it is not."""
    if facts.capability >= _LEAST_CAPABILITY:
        return None
    major, minor = facts.capability
    return (
        f"{facts.name} has compute capability {major}.{minor}; the cuda backend computes in bf16, which takes 8.0 "
        "(Ampere) or newer: use 'native'"
    )


def unserved(facts: DeviceFacts, quantization: Quantization) -> str | None:
    """Say which setting a GPU is too old for; None if there is none."""
    if quantization != "fp8" or facts.capability >= _FP8_CAPABILITY:
        return None
    major, minor = facts.capability
    return (
        f"engine.quantization is 'fp8', and {facts.name} has compute capability {major}.{minor}; fp8 takes 8.9 (Ada) "
        "or newer: 'int8' takes the same memory"
    )


def unserved_early_launch(facts: DeviceFacts) -> str | None:
    """Say that a GPU is too old for kernels set up before their turn; None if it is not."""
    if facts.capability >= _EARLY_CAPABILITY:
        return None
    major, minor = facts.capability
    return (
        f"engine.early_launch is true, and {facts.name} has compute capability {major}.{minor}; programmatic dependent "
        "launch takes 9.0 (Hopper) or newer: leave it false"
    )


def device_facts() -> DeviceFacts:
    """Look at the current GPU. Cost: makes a CUDA context, some 300 MiB of its memory and a second."""
    import torch

    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    return DeviceFacts(torch.cuda.get_device_name(), (major, minor), free, total)
