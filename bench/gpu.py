"""Measure the cuda backend on this machine's GPU. Needs torch, Triton, numpy, msgspec, tokenizers and jinja2.

    python bench/gpu.py --part checks           models against the specification, graphs against single ops
    python bench/gpu.py --part kernels          every kernel against float64, then timed, as shares of the limits
    python bench/gpu.py --part models           random weights: decode, mixed steps, prefill and serving, by format
    python bench/gpu.py --part transformers     the engine beside transformers' continuous batching, same process
    python bench/gpu.py --part sanitizer        the kernels on small shapes under compute-sanitizer
    python bench/gpu.py --part tune             other cuts of the products of few tokens, timed beside the rule's
    python bench/gpu.py --part all --tiny       everything on small shapes; also on a CPU, in Triton's interpreter

Limits (copying, a large bf16 product) are measured in the same run; a part ends in time for --minutes and names what
it left out. Results: a table, and a run appended to bench-results/gpu-PART.json, row by row.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined

from gpu_checks import checks, sanitizer
from gpu_kernels import kernels
from gpu_models import models
from gpu_report import DEVICE, DeviceLost, Report
from gpu_transformers import transformers
from gpu_tune import tune

from headrace.ops.cuda import launching, support

PARTS = {
    "checks": checks, "kernels": kernels, "models": models, "transformers": transformers, "sanitizer": sanitizer,
    "tune": tune,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], action="append", required=True, help="may be repeated")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--untimed", action="store_true", help="check only: each call is run once, not timed")
    parser.add_argument("--early", action="store_true", help="models with engine.early_launch, to compare with")
    parser.add_argument("--minutes", type=float, default=8.0, help="that each part may take")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for the figures")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if DEVICE == "cpu" and not args.tiny:
        parser.error("torch finds no GPU here; --tiny runs small shapes on the CPU")
    if DEVICE == "cuda" and (problem := support.problem()) is not None:
        parser.error(problem)
    has_failed = False
    for part in PARTS if "all" in args.part else args.part:
        print(f"-- {part}", flush=True)
        report = Report(
            part, is_tiny=args.tiny, is_timed=not args.untimed, launches_early=args.early, minutes=args.minutes,
            folder=args.out,
        )  # fmt: skip
        try:
            PARTS[part](report)
        except DeviceLost as error:
            print(f"the GPU was lost, what follows is not measured: {error}")
            return 2
        finally:
            report.write()
            print(f"written: {report.path}", flush=True)
        has_failed = has_failed or report.has_failed
    failed = launching.failed_kernels()
    if failed:
        print(f"kernels that failed: {', '.join(failed)}")
    return 1 if failed or has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
