from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.cli.entry import main
from headrace.executor.packing_error import PackingError, packing_errors, summarize
from headrace.model import build_program, open_checkpoint
from headrace.testing.checkpoints import write_checkpoint
from tests.parity.native_drive import needs_native


@needs_native
def test_blocks_that_are_kept_have_no_error_and_k_quants_a_small_one(gemma3_path: Path) -> None:
    with open_checkpoint(gemma3_path) as checkpoint:
        lines = {
            line.stored: line
            for line in summarize(packing_errors(build_program(checkpoint.config), checkpoint, "auto"))
        }
    assert {stored for stored, line in lines.items() if line.worst.relative_rms == 0} == {"Q8_0", "Q5_0", "Q5_0 + Q8_0"}
    assert 0 < lines["Q4_K"].relative_rms < 0.001
    assert lines["Q4_K"].relative_rms < lines["Q6_K"].relative_rms <= lines["Q6_K"].worst.relative_rms < 0.01


@needs_native
def test_the_error_of_some_rows_is_that_of_the_whole_matrix(gemma3_path: Path) -> None:
    with open_checkpoint(gemma3_path) as checkpoint:
        program = build_program(checkpoint.config)
        found = next(e for e in packing_errors(program, checkpoint, "auto") if e.stored == "Q6_K")
        spec = next(spec for spec in program.weights if spec.name == found.weight)
        exact = np.concatenate([checkpoint.tensor(part).to_float() for part in spec.parts]).reshape(-1, 32)
    scale = (np.abs(exact).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    rounded = np.clip(np.rint(exact / np.where(scale > 0, scale, 1)), -127, 127) * scale
    assert found.relative_rms == pytest.approx(np.linalg.norm(rounded - exact) / np.linalg.norm(exact), rel=0.05)


def test_one_line_sums_up_what_is_stored_and_packed_alike() -> None:
    errors = [
        PackingError(weight="a", stored="Q6_K", packed="int8", relative_rms=0.03),
        PackingError(weight="b", stored="Q6_K", packed="int8", relative_rms=0.04),
        PackingError(weight="c", stored="F16", packed="bf16", relative_rms=0.2),
    ]
    worst, other = summarize(errors)
    assert (worst.stored, worst.num_matrices, worst.worst.weight) == ("F16", 1, "c")
    assert (other.num_matrices, other.worst.weight) == (2, "b")
    assert other.relative_rms == pytest.approx(np.sqrt((0.03**2 + 0.04**2) / 2))


@needs_native
def test_plan_says_what_packing_costs_the_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    wanted = [
        "plan",
        f"file:{path}",
        "--explain",
        "--backend",
        "native",
        "--max-context",
        "128",
        "--quantization",
        "int8",
    ]
    assert main(wanted) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "int8 rotated" in line)
    assert "%" in line
