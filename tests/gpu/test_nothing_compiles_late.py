"""After warming up no step compiles a kernel, whatever it holds: a compilation is a pause of seconds for everybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# Kernels are compiled for an H200 and run nowhere: what is counted is compilations, answers mean nothing.
SCRIPT = """
import json, sys, threading
from pathlib import Path
sys.path.insert(0, "bench")
from gpu_compile import CompileOnly
import torch, triton
from headrace.core.request import Reach, SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.cuda import launching
from headrace.testing.checkpoints import write_checkpoint

driver = CompileOnly(90)
triton.runtime.driver.set_active(driver)
launching.compile_only()
compiled_by = set()
triton.knobs.compilation.listener = lambda **facts: compiled_by.add(threading.current_thread().name.split("_")[0])
torch.empty = torch.zeros  # what no kernel writes must still be numbers
path = write_checkpoint(Path(sys.argv[1]) / "llama", "llama", num_hidden_layers=1)
warm, late = [], {}
greedy = SamplingParams(temperature=0.0)

def rich(n):
    return SamplingParams(temperature=1.0, top_k=n, repetition_penalty=1.1, logprobs=n, seed=n)

def row(i, length, params, **more):
    blocks = (2 * i, 2 * i + 1, 100 + i, *range(100, 120))[: -(-length // 16)]
    history = tuple(range(3 + i))
    return Row(SeqId(i), 0, (1,) * length, blocks, params, history=history, prompt_len=1, **more)

steps = {f"{n} rows": [row(i, 1, greedy) for i in range(n)] for n in (1, 2, 3, 7, 16, 17, 31, 32, 33, 39, 40)}
lengths = (2, 4, 6, 9, 15, 16, 18, 31, 32, 47, 63, 64, 66, 80, 96, 99, 100, 128, 130, 200, 256, 258, 300)
steps |= {f"{n} tokens": [row(0, n, greedy)] for n in lengths}
steps |= {f"{n} alternatives": [row(i, 1, rich(n)) for i in range(1 + n % 3)] for n in (1, 2, 6, 8, 16, 20)}
prompt = row(0, 50, greedy)
steps |= {f"{n} rows and a prompt": [prompt, *[row(i, 1, greedy) for i in range(1, n)]] for n in (2, 17, 40)}
steps |= {f"{n} rows of 4": [row(i, 4, greedy) for i in range(n)] for n in (2, 3, 25)}
steps["scores"] = [row(0, 20, None, score=tuple((i, 1) for i in range(17)), num_score_top=3)]
steps["only filling"] = [row(0, 33, None)]
steps |= {
    f"{n} rows with windows": [row(i, length, greedy, reach=Reach(window=16, num_sinks=4)) for i in range(n)]
    for n, length in ((1, 1), (3, 20), (40, 1))
}
# Few first: what many rows compile would hide what few leave out.
CASES = (
    (3, 100, "auto", "int8", 512), (3, 100, "auto", "auto", 0),
    (40, 300, "int8", "int8", 512), (40, 100, "auto", "auto", 0),
)
for max_rows, max_tokens, quantization, kv_dtype, chunk_tokens in CASES:
    with open_checkpoint(path) as checkpoint:
        executor = CudaExecutor(
            build_program(checkpoint.config), checkpoint, num_blocks=200, block_size=16,
            options=DeviceOptions(
                device="cpu", max_rows=max_rows, max_step_tokens=max_tokens, is_warmed=True, kv_dtype=kv_dtype,
                quantization=quantization, chunk_tokens=chunk_tokens,
            ),
        )
    warm.append(len(driver.found))
    for step_id, (name, rows) in enumerate(steps.items()):
        if len(rows) > max_rows or sum(len(row.tokens) for row in rows) > max_tokens:
            continue
        before = len(driver.found)
        executor.launch(Step(step_id, tuple(rows)))
        if len(driver.found) > before:
            late[f"{name}, {max_rows} at most, {kv_dtype}"] = [found["kernel"] for found in driver.found[before:]]
print(json.dumps({"warm": warm, "late": late, "failed": launching.failed_kernels(),
                  "by": sorted(compiled_by)}))
"""


def test_no_step_compiles_a_kernel_after_warming_up(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == []
    assert min(found["warm"]) > 10
    assert found["late"] == {}
    assert found["by"] == ["kernel compiler"]  # several at a time, none by the thread that launches
