"""HEADRACE_ISA reaches the native library, and a set the machine lacks is refused by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.entry import main
from headrace.executor.native import problem as native_problem
from headrace.ops.native.library import available_isas
from headrace.testing.checkpoints import write_checkpoint
from tests.parity.native_drive import forced

_ASK = """
import sys
import headrace.ops.native as native
from headrace.cli.entry import main
code = main(sys.argv[1:])
print(native.active_isa())
sys.exit(code)
"""


@pytest.mark.skipif(native_problem() is not None, reason="the native library is not built here")
def test_the_environment_forces_an_instruction_set(smollm2_path: object) -> None:
    done = _generate("generic")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "generic"
    fastest = available_isas()[-1]
    told = "steps run on generic instructions, 5 to 30 times slower than with AVX2"
    if fastest != "generic":
        assert done.stderr.count(f"{told}: HEADRACE_ISA asks for them; without it this machine uses {fastest}") == 1


@pytest.mark.skipif(native_problem() is not None, reason="the native library is not built here")
def test_plan_and_doctor_show_the_instruction_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "model", "llama")
    for isa in available_isas()[:2]:
        monkeypatch.setenv("HEADRACE_ISA", isa)
        with forced(isa):
            assert main(["plan", f"file:{model}", "--backend", "native", "--explain"]) == 0
            assert re.search(rf"instructions +{isa} +HEADRACE_ISA", capsys.readouterr().out)
            assert main(["doctor", "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["native_isa"] == isa


@pytest.mark.skipif(native_problem() is not None, reason="the native library is not built here")
def test_an_instruction_set_that_is_not_here_is_a_configuration_error(smollm2_path: object) -> None:
    done = _generate("vax")
    assert done.returncode == 2
    assert "instruction set 'vax' is not available here" in done.stderr


def _generate(isa: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _ASK, "generate", "--model", "smollm2-135m", "--prompt", "Hi", "--max-tokens", "2"]
    return subprocess.run(
        command, env={**os.environ, "HEADRACE_ISA": isa}, capture_output=True, text=True, timeout=120, check=False
    )
