"""What scales of eight bits cost: a model's answers on the cuda backend's plain ops, with scales in bf16 and in fp16.

    python bench/gpu_scales.py MODEL.gguf

The executor runs on torch's CPU device in bf16; what is compared with is the reference backend in fp32, over random
token ids. Beside it, what the scales of a form lose of its weights: the largest over matrices, of their first 32 rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from headrace.core.request import SeqId
from headrace.core.step import Row, Step
from headrace.executor import ReferenceExecutor
from headrace.executor.cuda import load_weights
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.model import open_checkpoint
from headrace.model.build import build_program

TOKENS, BLOCK_SIZE, ROWS = 96, 32, 32


def log_probabilities(executor: CudaExecutor | ReferenceExecutor, tokens: list[int]) -> np.ndarray:
    """Return those of every next token, [T, V]."""
    step = Step(0, (Row(SeqId(0), 0, tuple(tokens), tuple(range(TOKENS // BLOCK_SIZE)), None),))
    logits = executor.logits(step).astype(np.float64)
    executor.shutdown()
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's file or folder")
    args = parser.parse_args()
    kept: dict[torch.dtype, dict[str, torch.Tensor]] = {}
    forms: dict[str, str] = {}
    with open_checkpoint(args.model) as checkpoint:
        program = build_program(checkpoint.config)
        tokens = np.random.default_rng(0).integers(0, program.vocab_size, TOKENS).tolist()
        reference = ReferenceExecutor(program, checkpoint, num_blocks=8, block_size=BLOCK_SIZE)
        expected = log_probabilities(reference, tokens)
        for kind in (torch.float16, torch.bfloat16):
            load_weights._scale_kind = lambda dtype, kind=kind: kind
            executor = CudaExecutor(
                program, checkpoint, num_blocks=8, block_size=BLOCK_SIZE,
                options=DeviceOptions(device="cpu", max_rows=2, max_step_tokens=TOKENS, is_warmed=False),
            )  # fmt: skip
            held = {name: weight for name, weight in executor._model._matrices.items() if weight.group}  # type: ignore[union-attr]
            kept[kind] = {name: weight.rows(slice(ROWS)) for name, weight in held.items()}
            forms |= {name: f"{weight.form}, groups of {weight.group}" for name, weight in held.items()}
            found = log_probabilities(executor, tokens)
            apart = (np.exp(expected) * (expected - found)).sum(-1)
            print(f"scales in {str(kind).removeprefix('torch.')}: mean KL {apart.mean():.4f}, worst {apart.max():.4f}")
    for form in sorted(set(forms.values())):
        wide, narrow = kept[torch.float16], kept[torch.bfloat16]
        lost = [float((narrow[name] - wide[name]).norm() / wide[name].norm()) for name in wide if forms[name] == form]
        print(f"{form}: {len(lost)} matrices, bf16 against fp16 scales {max(lost):.2%} of the norm")


if __name__ == "__main__":
    main()
