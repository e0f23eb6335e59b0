"""Predict products of few tokens on an H200 from counts, without a GPU: bytes, compiled loops, launches.

    python bench/gpu_counts.py --model 8B --tokens 1 64

Nothing here is measured. A product takes as long as the slowest of three: its weight from memory at 4.3 TB/s; weight,
tokens and sums of parts through the L2 cache at 5.5 TB/s; the instructions of its turns at four a clock; and beside
that one boundary between kernels, 2.5 us. A step has one more boundary a layer, for attention, and 0.4 us for the
rotation in it, and reads no KV; with `--rotation-apart` it has two, as with int8 KV and batch invariance.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

import gpu_sass  # before the kernels: it has them compiled, not interpreted
import torch
import triton

from headrace.ops.cuda import launching
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.linear import linear, tile_of
from headrace.ops.cuda.tiling import NUM_MULTIPROCESSORS, bucket
from headrace.ops.cuda.weights import Weight

MEMORY, CACHE, CLOCK, BOUNDARY_S = 4.3e12, 5.5e12, 1.75e9, 2.5e-6
ROTATION_S = 0.4e-6  # in front of attention's loop: some 500 instructions of a warp and 14 barriers
_RESIDENT_WARPS = 16

# Outputs, inputs, epilogue of a layer's products and of the head.
MODELS = {
    "8B": (32, [(6144, 4096, "none"), (4096, 4096, "add"), (28672, 4096, "glu"), (4096, 14336, "add")], (128256, 4096)),
    "1B": (16, [(3072, 2048, "none"), (2048, 2048, "add"), (16384, 2048, "glu"), (2048, 8192, "add")], (128256, 2048)),
}
FORMS = ("bf16", "fp8", "int8", "int8 g32", "int4 g32", "int4 g128")


_turns: dict[tuple[object, ...], int] = {}  # instructions of a turn of what is compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One product: bytes of its weight, seconds by each limit, instructions per weight and lane, bytes under way."""

    weight_bytes: float
    memory_s: float
    cache_s: float
    issue_s: float
    per_weight: float
    ahead_kb: float
    parts: int

    @property
    def took_s(self) -> float:
        """Return the predicted time with the boundary in front."""
        return max(self.memory_s, self.cache_s, self.issue_s) + BOUNDARY_S


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
    if driver.code:  # else the kernel is that of a product before
        loops = gpu_sass.innermost_loops(driver.code[-1][1])
        _turns[form, epilogue, tile.block_n, tile.block_t, tile.block_k] = max(loop.opcodes.total() for loop in loops)
    turn = _turns[form, epilogue, tile.block_n, tile.block_t, tile.block_k]
    per_weight = turn / (tile.block_n * tile.block_k / (tile.num_warps * 32))
    tiles = math.ceil(n / tile.block_n)
    read = tiles * k * tokens * 2 + (2 * tile.num_parts * tokens * n * 4 if tile.num_parts > 1 else 0)
    resident = min(tiles * tile.num_parts / NUM_MULTIPROCESSORS, _RESIDENT_WARPS / tile.num_warps)
    held = weight.num_bytes / (n * k)
    ahead = resident * min(tile.buffers - 1, tile.num_turns) * tile.block_n * tile.block_k * held
    return Prediction(
        weight_bytes=weight.num_bytes, memory_s=weight.num_bytes / MEMORY, cache_s=(weight.num_bytes + read) / CACHE,
        issue_s=per_weight * n * k / (128 * NUM_MULTIPROCESSORS * CLOCK), per_weight=per_weight,
        ahead_kb=ahead / 1024, parts=tile.num_parts,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="8B", help="whose shapes")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64], help="of a step, up to 64")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="of the weights")
    parser.add_argument("--rotation-apart", action="store_true", help="rotation and KV write in a launch of their own")
    args = parser.parse_args()
    driver = gpu_sass.Reader(90)
    triton.runtime.driver.set_active(driver)
    launching.compile_only()
    layers, shapes, head = MODELS[args.model]
    print("PREDICTED from counts, nothing measured; % of the time that the weights' bytes take at 4.3 TB/s")
    print(f"{'':34}parts  instructions/weight  KB under way   memory    cache    issue      all     %")
    for form in args.forms:
        for tokens in args.tokens:
            took = layers * (BOUNDARY_S + (BOUNDARY_S if args.rotation_apart else ROTATION_S))
            held = 0.0
            for n, k, epilogue in (*shapes, (*head, "none")):
                found = predicted(driver, form, n, k, epilogue, tokens)
                count = 1 if (n, k) == head else layers
                took += count * found.took_s
                held += count * found.weight_bytes
                times = [found.memory_s, found.cache_s, found.issue_s, found.took_s]
                print(f"{form:9} {tokens:3} {n:7} x {k:5} {epilogue:5} {found.parts:6} {found.per_weight:20.2f} "
                      f"{found.ahead_kb:13.0f} " + " ".join(f"{1e6 * t:5.1f} us" for t in times)
                      + f" {100 * found.memory_s / found.took_s:5.0f}")  # fmt: skip
            print(f"{form:9} {tokens:3} a step of {args.model}: {1e3 * took:.2f} ms, "
                  f"{100 * held / MEMORY / took:.0f} % of the bytes' time")  # fmt: skip
    return 1 if launching.failed_kernels() else 0


if __name__ == "__main__":
    sys.exit(main())
