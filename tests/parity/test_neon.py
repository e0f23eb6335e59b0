"""The NEON kernels agree with the generic ones and with plain products: built for aarch64, emulated elsewhere."""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("gemm_neon", "gemm_generic", "linear", "pack", "pool", "cpu", "capi_linear", "selftest")
FLAGS = ["-std=c++20", "-O1", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-w", "-pthread"]
FLAGS += ["-DHEADRACE_HAS_NEON=1"]
IS_NATIVE = platform.machine() in ("aarch64", "arm64")
COMPILER = "g++" if IS_NATIVE else "aarch64-linux-gnu-g++"
EMULATOR = [] if IS_NATIVE else ["qemu-aarch64", "-cpu", "max"]


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in (COMPILER, *EMULATOR[:1])),
    reason="no compiler or no emulator for aarch64 here; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user",
)
def test_neon_gives_what_the_generic_kernels_and_a_plain_product_give(tmp_path: Path) -> None:
    def build(source: Path) -> Path:
        target = tmp_path / f"{source.stem}.o"
        isa = ["-march=armv8.2-a+dotprod+fp16"] if source.stem == "gemm_neon" else []
        subprocess.run([COMPILER, *FLAGS, *isa, f"-I{ROOT / 'csrc'}", "-c", source, "-o", target], check=True)
        return target

    sources = [*(ROOT / "csrc" / f"{name}.cpp" for name in SOURCES), Path(__file__).with_name("neon_check.cpp")]
    with ThreadPoolExecutor(2) as workers:
        objects = list(workers.map(build, sources))
    program = tmp_path / "check"
    subprocess.run([COMPILER, "-static", *objects, "-pthread", "-o", program], check=True)
    found = subprocess.run([*EMULATOR, program], capture_output=True, text=True, timeout=300, check=False)
    assert (found.returncode, found.stdout) == (0, "864 checks, 0 differences\n"), found.stdout[-3000:] + found.stderr
