"""Why a GPU cannot be used is said without torch, with a remedy."""

from __future__ import annotations

import subprocess
import sys

from headrace.ops.cuda.support import DeviceFacts, too_old, unfit


def test_old_packages_are_named_with_what_is_needed() -> None:
    assert too_old("torch", "2.13.0+cu130", (2, 11)) is None
    assert too_old("torch", "2.11.0a0", (2, 11)) is None
    problem = too_old("triton", "3.5.1", (3, 6))
    assert problem is not None
    assert "3.5.1" in problem
    assert "3.6 or newer" in problem


def test_an_old_gpu_is_named_with_its_capability() -> None:
    assert unfit(DeviceFacts("H200", (9, 0), 1, 1)) is None
    problem = unfit(DeviceFacts("T4", (7, 5), 1, 1))
    assert problem is not None
    assert "7.5" in problem
    assert "native" in problem


def test_asking_imports_no_torch() -> None:
    code = (
        "import sys; from headrace.app import backends; from headrace.ops.cuda.support import has_device, problem; "
        "has_device() or problem(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
