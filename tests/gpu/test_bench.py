"""The script that measures on a GPU runs on small shapes anywhere: it must not fail there for a small reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("part", ["kernels", "prefill"])
def test_a_part_runs_on_small_shapes(tmp_path: Path, part: str) -> None:
    command = [sys.executable, "-W", "ignore", "bench/gpu.py", "--part", part, "--tiny", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / f"gpu-{part}.json").read_text())
    assert facts["failed_kernels"] == []
    assert len(facts["rows"]) >= 3
    for row in facts["rows"]:
        assert row.get("error", 0.0) < 0.02
        assert row.get("right", True)
