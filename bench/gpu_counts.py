"""Predict products of few tokens on an H200 from counts, without a GPU: bytes, compiled loops, launches.

    python bench/gpu_counts.py --model 8B --tokens 1 64
    python bench/gpu_counts.py --model 8B --tokens 128 256 --forms 'int4 g32'

Nothing here is measured. A product takes as long as the slowest of five, the first four counted by the rule that cuts
it (`ops.cuda.tiling`): its weight from memory at 4.3 TB/s; weight, tokens and sums of parts through the L2 cache at
5.5 TB/s; what the multiprocessor that has most to do reads of these; its matrix units; the instructions of its turns at
four a clock. Behind it comes what adds the parts up, a program for each tile, and in front one boundary between
kernels, 2.5 us. A step has one more boundary a layer, for attention, and 0.4 us for the rotation in it, and reads no
KV; with `--rotation-apart` it has two, as with int8 KV and batch invariance.

Of more than 64 tokens `library` is the least that the other way takes: decoding the weight to the L2 cache, which no
byte of it leaves, then the vendor's product at 790 TFLOP/s, with a boundary for each and for what follows.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace

import gpu_sass  # before the kernels: it has them compiled, not interpreted
import torch
import triton

from headrace.ops.cuda import launching
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.linear import few_tokens, linear, tile_of
from headrace.ops.cuda.long_products import slab_rows
from headrace.ops.cuda.tiling import CACHE, CLOCK, MEMORY, NUM_MULTIPROCESSORS, Count, Tiling, bucket, counted
from headrace.ops.cuda.weights import Weight

BOUNDARY_S, LIBRARY_FLOPS = 2.5e-6, 790e12
ROTATION_S = 0.4e-6  # in front of attention's loop: some 500 instructions of a warp and 14 barriers
_RESIDENT_WARPS = 16
_LIMITS = ("memory", "cache", "reading", "matrix", "issue", "sums", "all")

# Outputs, inputs, epilogue of a layer's products and of the head.
MODELS = {
    "8B": (32, [(6144, 4096, "none"), (4096, 4096, "add"), (28672, 4096, "glu"), (4096, 14336, "add")], (128256, 4096)),
    "1B": (16, [(3072, 2048, "none"), (2048, 2048, "add"), (16384, 2048, "glu"), (2048, 8192, "add")], (128256, 2048)),
}
FORMS = ("bf16", "fp8", "int8", "int8 g32", "int4 g32", "int4 g128")


_turns: dict[tuple[str, str, Tiling], int] = {}  # instructions of a turn of what is compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One product: bytes of its weight, seconds by each limit, instructions per weight and lane, bytes under way."""

    weight_bytes: float
    count: Count
    issue_s: float
    library_s: float
    per_weight: float
    ahead_kb: float
    cut: str

    @property
    def took_s(self) -> float:
        """Return the predicted time with the boundary in front."""
        return max(self.count.took_s, self.issue_s + self.count.summing_s) + BOUNDARY_S

    @property
    def limits(self) -> list[float]:
        """Return what is shown, as `_LIMITS` names it."""
        c = self.count
        return [c.memory_s, c.cache_s, c.reading_s, c.matrix_s, self.issue_s, c.summing_s, self.took_s]


def empty_weight(form: str, n: int, k: int) -> Weight:
    """Return a weight whose memory is never touched."""
    group = int(form.split(" g")[1]) if " g" in form else 0
    per_output = torch.zeros((n, 1))
    match form.split()[0]:
        case "bf16":
            return Weight(form="dense", n=n, k=k, group=0, values=torch.zeros((n, k), dtype=torch.bfloat16))
        case "fp8":
            values = torch.zeros((n, k), dtype=torch.uint8).view(torch.float8_e4m3fn)
            return Weight(form="fp8", n=n, k=k, group=0, values=values, scales=per_output)
        case "int8":
            words = torch.zeros((k // 64, n, 32), dtype=torch.int16)
            pairs = torch.zeros((k // 64, n, 2), dtype=torch.bfloat16)
            return Weight(form="int8", n=n, k=k, group=group, values=words, scales=pairs if group else per_output)
        case _:
            words = torch.zeros((k // 128, n, 32), dtype=torch.int16)
            pairs = torch.zeros((k // group, n, 2), dtype=torch.bfloat16)
            return Weight(form="int4", n=n, k=k, group=group, values=words, scales=pairs)


def predicted(driver: gpu_sass.Reader, form: str, n: int, k: int, epilogue: str, tokens: int) -> Prediction:
    """Compile one product as it is launched, and predict what it takes."""
    weight = empty_weight(form, n, k)
    x = torch.zeros((tokens, k), dtype=torch.bfloat16)
    kind = torch.float32 if epilogue == "add" else torch.bfloat16
    out = torch.zeros((tokens, n // 2 if epilogue == "glu" else n), dtype=kind)
    driver.code.clear()
    linear(x, weight, out, epilogue=Epilogue(kind=epilogue))  # type: ignore[arg-type]
    tile = tile_of(weight, bucket(tokens), 2)
    key = form, epilogue, tile
    if driver.code:  # else the kernel is that of a product before
        loops = gpu_sass.innermost_loops(driver.code[-1][1])
        _turns[key] = max(loop.opcodes.total() for loop in loops if loop.kinds["matrix"])
    elif key not in _turns:  # … that has other turns in a part
        _turns[key] = next(turn for (f, e, t), turn in _turns.items() if (f, e) == key[:2] and is_alike(t, tile))
    per_weight = _turns[key] / (tile.block_n * tile.block_k / (tile.num_warps * 32))
    programs = math.ceil(n / tile.block_n) * math.ceil(tokens / tile.block_t) * tile.num_parts
    turns = math.ceil(programs / NUM_MULTIPROCESSORS) * tile.num_turns  # of the multiprocessor that has most to do
    shared = programs * tile.num_turns / NUM_MULTIPROCESSORS  # … where small programs spread evenly
    most = turns if tile.block_t > 32 else shared
    held = weight.num_bytes / (n * k)
    resident = min(programs / NUM_MULTIPROCESSORS, _RESIDENT_WARPS / tile.num_warps)
    ahead = resident * min(tile.buffers - 1, tile.num_turns) * tile.block_n * tile.block_k * held
    return Prediction(
        weight_bytes=weight.num_bytes, per_weight=per_weight, ahead_kb=ahead / 1024,
        count=counted(tile, n=n, k=k, bytes_per_input=held, num_tokens=tokens, itemsize=2),
        issue_s=most * _turns[key] * tile.num_warps / (4 * CLOCK), library_s=library_s(weight, tokens),
        cut=f"{tile.block_n} x {tile.block_t}, {tile.num_parts}",
    )  # fmt: skip


def is_alike(one: Tiling, other: Tiling) -> bool:
    """Say whether one kernel serves two cuts: the number of turns is no part of it."""
    return replace(one, num_turns=0) == replace(other, num_turns=0)


def library_s(weight: Weight, tokens: int) -> float:
    """Return the least seconds that decoding a weight and the vendor's product of it take."""
    numbers = weight.n * weight.k
    slabs = math.ceil(weight.n / slab_rows(weight.n, weight.k, tokens, itemsize=2))
    product = max(2 * tokens * numbers / LIBRARY_FLOPS, 2 * numbers / CACHE)
    decoding = max(weight.num_bytes / MEMORY, (weight.num_bytes + 2 * numbers) / CACHE)
    return decoding + product + (2 * slabs + 1) * BOUNDARY_S


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="8B", help="whose shapes")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64], help="of a step, up to 256")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="of the weights")
    parser.add_argument("--rotation-apart", action="store_true", help="rotation and KV write in a launch of their own")
    args = parser.parse_args()
    driver = gpu_sass.Reader(90)
    triton.runtime.driver.set_active(driver)
    launching.compile_only()
    layers, shapes, head = MODELS[args.model]
    print(
        "PREDICTED from counts, nothing measured; % of the time that the weights' bytes take at 4.3 TB/s; microseconds"
    )
    print(f"{'':32}outputs x tokens, parts  instructions/weight  KB under way"
          + "".join(f"{limit:>8}" for limit in _LIMITS) + "     %")  # fmt: skip
    for form in args.forms:
        for tokens in args.tokens:
            if tokens > few_tokens(empty_weight(form, 128, 128), torch.bfloat16):
                print(f"{form:9} {tokens:3} tokens: multiplied by the vendor's library")
                continue
            took = library = layers * (BOUNDARY_S + (BOUNDARY_S if args.rotation_apart else ROTATION_S))
            held = 0.0
            for n, k, epilogue in (*shapes, (*head, "none")):
                found = predicted(driver, form, n, k, epilogue, tokens)
                count = 1 if (n, k) == head else layers
                took += count * found.took_s
                library += count * found.library_s
                held += count * found.weight_bytes
                print(f"{form:9} {tokens:3} {n:7} x {k:5} {epilogue:5} {found.cut:>17} {found.per_weight:20.2f} "
                      f"{found.ahead_kb:13.0f}" + "".join(f"{1e6 * t:8.1f}" for t in found.limits)
                      + f" {100 * found.count.memory_s / found.took_s:5.0f}")  # fmt: skip
            print(f"{form:9} {tokens:3} a step of {args.model}: {1e3 * took:.2f} ms, "
                  f"{100 * held / MEMORY / took:.0f} % of the bytes' time"
                  + (f"; library {1e3 * library:.2f} ms" if tokens > 64 else ""))  # fmt: skip
    return 1 if launching.failed_kernels() else 0


if __name__ == "__main__":
    sys.exit(main())
