"""The script that measures on a GPU runs on small shapes anywhere: it must not fail there for a small reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


# What keeps the other parts from running through on a CPU is named by them; `sanitizer` says that there is no GPU.
@pytest.mark.parametrize("part", ["checks", "kernels", "models", "sanitizer", "transformers", "tune"])
def test_a_part_runs_on_small_shapes(tmp_path: Path, part: str) -> None:
    command = [sys.executable, "-W", "ignore", "bench/gpu.py", "--part", part, "--tiny", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    (tmp_path / f"gpu-{part}.json").write_text(json.dumps({"part": part, "runs": [{"date": "of an earlier one"}]}))
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    earlier, run = json.loads((tmp_path / f"gpu-{part}.json").read_text())["runs"]
    assert earlier == {"date": "of an earlier one"}
    assert run["failed_kernels"] == []
    assert "died_at" not in run
    assert run["rows"]
    for row in run["rows"]:
        assert "failed" not in row, row
        # A number at the border between two of e4m3 may go either way: some 6 % of one in hundreds.
        assert row.get("error", 0.0) < (0.05 if "e4m3" in row["what"] else 0.02)
        assert row.get("right", True)


ROWS = """
import os, sys
sys.path.insert(0, "bench")
from pathlib import Path
import gpu_report
from gpu_report import DeviceLost, Report

report = Report("rows", is_tiny=True, is_timed=False, launches_early=False, minutes=1.0, folder=Path(sys.argv[1]))
with report.row("refused"):
    raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`")
with report.row("right"):
    report.add("right", right=True)
gpu_report.works = lambda: False
try:
    with report.row("all"), report.row("broken"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
except DeviceLost:
    report.add("lost", right=True)
with report.row("killed"):
    os._exit(3)
"""


def test_a_row_that_fails_stops_no_other_unless_the_device_is_lost_and_one_that_kills_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ROWS, str(tmp_path)],
        cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    (run,) = json.loads((tmp_path / "gpu-rows.json").read_text())["runs"]
    assert [row["what"] for row in run["rows"]] == ["refused", "right", "broken", "all", "lost"]
    assert [("failed" in row) for row in run["rows"]] == [True, False, True, True, False]
    assert run["died_at"] == "killed"


@pytest.mark.parametrize("chunk", [0, 32])
def test_the_hosts_part_of_a_step_is_measured_on_any_machine(tmp_path: Path, chunk: int) -> None:
    out = tmp_path / "host.json"
    out.write_text(json.dumps({"decode": "of an earlier run", "mixed": "of an earlier run"}))
    command = [sys.executable, "-W", "ignore", "bench/gpu_host.py", "--rows", "3", "--steps", "20", "--context", "80"]
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--chunk", str(chunk), "--out", str(out)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["decode" if chunk else "mixed"] == "of an earlier run"
    for row in found["mixed"]["steps"] if chunk else found["decode"]:
        assert row["ops"] == ["copy_", "copy_"]  # to the device and back; all else is the recorded graph
        assert min(row["us"].values()) > 0
        if chunk:
            assert min(row["before_8b_us"], row["before_1b_us"]) > 0
