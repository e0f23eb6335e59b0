"""Several models and formats through `headrace bench offline`, one process each: speed, and its share of the limits.

    python bench/models.py [--models MODEL …] [--formats auto int8 …] [--rounds 5] [--out FILE] [--markdown FILE]

Rows: prefill of one prompt of 512 tokens, and decode of 1, 8 and 32 sequences that begin with 16 tokens. Shares are of
the read rate and of the multiply rates that the same process measured right after. Memory: the process' peak against
1.2 x (packed weights + KV pool) + 150 MB. The first token is timed from the start of the process, with a warm cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHAPES = ((512, 2, 1), (16, 64, 1), (16, 64, 8), (16, 64, 32))  # prompt tokens, output tokens, batch
FLAGS = ("--max-context", "1024", "--max-num-seqs", "32", "--kv-memory-mib", "1024")
MB = 1e6


def measure(model: str, weights: str, shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    prompt, output, batch = shape
    command = [sys.executable, "-m", "headrace", "bench", "offline", "--json", "--model", model]
    command += ["--quantization", weights, "--prompt-len", str(prompt), "--output-len", str(output)]
    command += ["--batch", str(batch), "--rounds", str(rounds), *FLAGS]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    used = found["utilization"]
    bound = 1.2 * (used["weight_bytes"] + found["kv_bytes"]) + 150 * MB
    return {**found, "memory_share_of_bound": found["peak_memory_bytes"] / bound}


def row(found: dict[str, Any]) -> list[str]:
    used, shape = found["utilization"], found["shape"]
    is_prefill = shape["prompt_tokens"] > shape["output_tokens"]
    rate = found["prefill_tokens_per_s" if is_prefill else "decode_tokens_per_s"]
    what = f"prefill {shape['prompt_tokens']}" if is_prefill else f"decode, batch {shape['batch']}"
    limits = used["limits"]
    return [
        Path(found["model"]).name,
        found["quantization"],
        what,
        f"{rate['median']:,.0f} ({rate['low']:,.0f} … {rate['high']:,.0f})",
        "–" if is_prefill else f"{found['step_ms']['median']:.2f}",
        "–" if is_prefill else f"{used['decode_gb_per_s']:.1f} of {limits['read_gb_per_s']:.1f}",
        "–" if is_prefill else f"{used['decode_read_share']:.0%}",
        f"{used['prefill_top_per_s' if is_prefill else 'decode_top_per_s']:.2f}",
        f"{used['prefill_compute_share' if is_prefill else 'decode_compute_share']:.0%}",
        f"{found['first_token_s']:.2f}",
        f"{found['peak_memory_bytes'] / MB:,.0f} ({found['memory_share_of_bound']:.0%})",
    ]


HEADS = (
    "model", "weights", "task", "tokens/s (range)", "step, ms", "GB/s read", "of the read rate", "TOP/s", "of the peak",
    "first token, s", "peak MB (of the bound)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma3-270m", "random:llama-1b"])
    parser.add_argument("--formats", nargs="+", default=["auto", "int8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    results, lines = [], ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    tasks = [(model, weights, shape) for model in args.models for weights in args.formats for shape in SHAPES]
    for index, (model, weights, shape) in enumerate(tasks):
        print(f"{index + 1}/{len(tasks)} {model} {weights} {shape}", file=sys.stderr, flush=True)
        results.append(measure(model, weights, shape, args.rounds))
        lines.append("| " + " | ".join(row(results[-1])) + " |")
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.markdown is not None:
        args.markdown.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
