"""Every kernel compiles for an H200 on any machine: wrong types and layouts are found without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Weights alone may be fetched ahead: nothing writes them.
EARLY_ACCESS = re.compile(
    r"^\s*(@!?%p\d+\s+)?((ld|ldu|st|atom|red|cp(?!\.async\.bulk\.prefetch\.L2\.)|prefetch)\.(?!param)|(bra|ret|exit)\b)",
    re.MULTILINE,
)
REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_kernel_compiles_for_gpus_of_old_instructions_and_little_shared_memory(tmp_path: Path) -> None:
    done = compiled(tmp_path, 86)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: none" in done.stdout
    assert done.stdout.count(" registers ") > 30


def test_every_kernel_compiles_for_sm_90_without_spilling(tmp_path: Path) -> None:
    done = compiled(tmp_path, 90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: none" in done.stdout
    stacks = [int(line.split()[2]) for line in done.stdout.splitlines() if " registers " in line]
    assert len(stacks) > 30
    assert max(stacks) <= 64  # sine and cosine keep 32 bytes for very large angles
    shared = {
        line.split(None, 9)[9].strip(): int(line.split()[5])
        for line in done.stdout.splitlines()
        if " registers " in line and "attend" in line
    }
    decode, prefill = (
        shared[f"attention, D 128, 32/8 heads, {tiles} parts"] for tiles in ("tiles of 1, 16", "tiles of 32, 1")
    )
    # The queries stay in registers, or three programs would not fit on a multiprocessor.
    assert shared["rotation and attention, D 128, 32/8 heads, 16 parts"] == decode
    assert decode >= 2 * 2 * 64 * 256  # two turns of K and V: without, nothing is on its way while a turn is computed
    assert prefill >= 2 * 2 * 64 * 256
    assert_all_wait_first(tmp_path)
    adjusting = [path.read_text() for path in tmp_path.rglob("_adjust.ptx")]
    assert adjusting
    for code in adjusting:  # as numpy has it, to the bit: what is drawn from is what the CPU draws from
        assert "div.rn.f32" in code
        assert not re.search(r"\bfma\.|div\.(full|approx)", code)


def compiled(cache: Path, arch: int) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "ignore", "bench/gpu_compile.py", "--arch", str(arch), "--quick"]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def assert_all_wait_first(cache: Path) -> None:
    """A kernel that is set up before its turn may touch nothing, and end nowhere, before it has waited for it."""
    found = {}
    for path in cache.rglob("*.ptx"):
        _, _, body = path.read_text().partition(".entry")
        before, waits, after = body.partition("griddepcontrol.wait")
        if waits:
            assert not EARLY_ACCESS.search(before), path.name
            fetched = set(re.findall(r"cp\.async\.bulk\.prefetch\.L2\S*", before))
            assert fetched == ({"cp.async.bulk.prefetch.L2.global"} if path.stem == "linear_kernel" else set())
            assert "griddepcontrol.launch_dependents" in after
            found[path.stem] = found.get(path.stem, 0) + 1
    of_layers = "_begin_step _rms_norm _qk_write attend attend_single add_parts linear_kernel"
    of_many = "_decode_rows _finish_product _round_tokens"
    assert set(found) == {*of_layers.split(), *of_many.split(), "scan", "gather", "draw"}
    assert found["attend"] >= 3


@pytest.mark.parametrize("form", ["bf16", "int4 g32"])
def test_the_loops_of_a_kernel_are_read_from_its_machine_code(tmp_path: Path, form: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "bench/gpu_sass.py", "--only", f"linear {form}, 64 tokens, none"]
    done = subprocess.run(
        [*command, "--dump", str(tmp_path / "code")],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    heads, *lines = done.stdout.splitlines()
    loops = [line.split("…")[1].split() for line in lines if "…" in line]
    assert loops, done.stdout
    kinds = heads.split()[1:]
    first = dict(zip(kinds, map(int, loops[0][2:]), strict=True))
    code = next((tmp_path / "code").glob("*-linear_kernel.sass")).read_text()
    assert 0 < first["matrix"] <= code.count("HGMMA")
    assert first["load"] > 0
    assert first["wait"] < 2 * first["matrix"]  # products are issued in groups, not waited for one by one
    assert sum(first.values()) == int(loops[0][1])


def test_products_are_predicted_from_the_cuts_and_loops_that_are_compiled(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "bench/gpu_counts.py", "--model", "1B"]
    done = subprocess.run(
        [*command, "--tokens", "128", "--forms", "bf16", "int8"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    _, heads, library, *products, step = done.stdout.splitlines()
    assert library == "bf16      128 tokens: multiplied by the vendor's library"
    assert len(products) == 5
    for line in products:
        limits = dict(zip(heads.split()[-8:], map(float, line.split()[-8:]), strict=True))
        slowest = max(limits[name] for name in ("memory", "cache", "reading", "matrix", "issue"))
        assert limits["all"] == pytest.approx(slowest + limits["sums"] + 2.5, abs=0.2)
        assert 2.0 < float(line.split()[-10]) < 8.0  # instructions a weight: of the loop that multiplies
    took, library_took = (float(text) for text in re.findall(r"([0-9.]+) ms", step))
    assert 0.5 < took < library_took
