"""Compile every kernel of the cuda backend for one GPU architecture, without a GPU; print registers, spills and shared
memory, and fail if one does not compile or spills much.

    python bench/gpu_compile.py --arch 90 --json bench-results/gpu-compile-sm90.json

Triton's driver is replaced by one that compiles what is launched and runs nothing, so the launchers of the package are
called as an engine calls them, with the shapes of real models.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

os.environ.pop("TRITON_INTERPRET", None)  # kernels that are interpreted are not compiled

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.driver import ty_to_cpp

from headrace.ops.cuda import launching
from headrace.ops.cuda.attention import HEAD_SIZES, Scoring, Tiles, TokenReach, attention, tile_size
from headrace.ops.cuda.attention_single import single_attention
from headrace.ops.cuda.e4m3 import room_in, round_tokens
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.finish import finish
from headrace.ops.cuda.linear import Squares, few_tokens, linear
from headrace.ops.cuda.long_products import long_linear
from headrace.ops.cuda.norm import Following, rms_norm, rms_norm_add
from headrace.ops.cuda.rope import Rotation, qk_write
from headrace.ops.cuda.rows import decode_slab, gather_rows
from headrace.ops.cuda.sampling import NUM_FLOATS, NUM_INTS, Adjustments, Lines, try_draw
from headrace.ops.cuda.step_inputs import begin_step
from headrace.ops.cuda.weights import Weight, dense, from_bytes, from_nibbles

# Bytes of shared memory that one block may have; a kernel that wants more does not run there.
SHARED_LIMITS = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}


class CompileOnly(DriverBase):
    """Stands in for Triton's CUDA driver: a target, no device."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)
        self.found: list[dict[str, object]] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED_LIMITS.get(arch, 227 << 10), "multiprocessor_count": 132, "warpSize": 32,
                "max_num_regs": 65536,
            },
            load_binary=self._load,
        )  # fmt: skip
        self.launcher_cls = lambda src, metadata: lambda *args, **options: None
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: (arch // 10, arch % 10)
        self.set_current_device = lambda device: None

    def _load(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        registers, spills = usage(binary)
        self.found.append({"kernel": name.lstrip("_"), "registers": registers, "spill_bytes": spills, "shared": shared})
        return 1, 1, registers, spills, 1024

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return str(ty_to_cpp(ty))

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> object:
        raise RuntimeError("nothing runs here")


def usage(binary: bytes) -> tuple[int, int]:
    """Return the registers and the bytes of local memory of a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    return int(registers[1]) if registers else -1, int(stack[1]) if stack else -1


def cases(*, is_quick: bool) -> Iterator[tuple[str, object]]:
    """Yield what is launched: a name and a call. Tensors are small; what kernels are compiled for is not."""
    kind = torch.bfloat16
    x = torch.zeros((1, 4096))
    h = torch.zeros((1, 4096), dtype=kind)
    weight = torch.zeros(4096)
    yield "norm", lambda: rms_norm(x, weight, h, eps=1e-5)
    yield "norm, add, norm", lambda: rms_norm_add(h, weight, x, eps=1e-5, following=Following(weight, h, 1e-5))
    for d in (128,) if is_quick else HEAD_SIZES:
        for q_heads, kv_heads in ((32, 8),) if is_quick else ((32, 8), (8, 8), (8, 1)):
            yield from attention_cases(d, q_heads, kv_heads, kind, is_quick=is_quick)
    wide, pool = torch.zeros((1, 4 * 64)), torch.zeros((2, 2, 2, 32, 64))
    one = torch.zeros(1, dtype=torch.int32)
    single = Tiles(rows=one, first=one, count=one, size=1, num_parts=8)
    yield (
        "attention, fp32",  # models are compared with the specification in it
        lambda: attention(wide, torch.empty_like(wide), pool, one.view(1, 1), single, one, Scoring(scale=0.1)),
    )
    qkv, bare = (
        torch.zeros((1, 8 * 64)),
        Rotation(inv_freq=torch.zeros(32), scale=1.0, q_norm=None, k_norm=None, eps=1e-6),
    )
    yield (
        "rotation and attention, fp32",
        lambda: single_attention(qkv, wide, pool, one.view(1, 1), single, one, Scoring(scale=0.1), bare),
    )
    n, k = 8192, 4096
    steps, ones = torch.zeros((n, k), dtype=torch.uint8), torch.ones((n, 1), dtype=kind)
    forms = {"bf16": dense(torch.zeros((n, k), dtype=kind)), "int8": from_bytes(steps.view(torch.int8), ones.float())}
    forms["int8 g32"] = from_bytes(steps.view(torch.int8), ones.expand(n, k // 32))
    for group in (32, 128):
        forms[f"int4 g{group}"] = from_nibbles(steps, ones.expand(n, k // group), ones.expand(n, k // group), k=k)
    forms["fp8"] = Weight(form="fp8", n=n, k=k, group=0, values=steps.view(torch.float8_e4m3fn), scales=ones.float())
    for name, matrix in forms.items():
        for tokens in (1, 64, 128) if is_quick else (1, 16, 32, 64, 128, 256):
            if tokens <= few_tokens(matrix, kind):
                yield from linear_cases(name, matrix, tokens, kind, is_quick=is_quick)
    yield from long_cases(kind)
    index = torch.zeros(1, dtype=torch.int32)
    for name, matrix in forms.items():
        yield f"embedding {name}", lambda m=matrix: gather_rows(m, index, x)
        if name != "bf16":
            yield f"slab {name}", lambda m=matrix: decode_slab(m, 0, torch.zeros((64, 4096), dtype=kind))
    logits = torch.zeros((1, 128256))
    lines = Lines(
        floats=torch.zeros((1, NUM_FLOATS), dtype=torch.float64), ints=torch.zeros((1, NUM_INTS), dtype=torch.int32)
    )
    entry = torch.zeros(16, dtype=torch.int32)
    adjusted = Adjustments(lines=entry, ids=entry, seen=entry, counts=entry, biases=torch.zeros(16))
    places = torch.zeros((2, 16), dtype=torch.int32)
    drawn = torch.zeros((1, 4), dtype=torch.float64)
    yield "inputs of a step", lambda: begin_step(entry, entry, drawn, places, places, vocab_size=128256)
    yield "draw", lambda: try_draw(logits, lines, None, num_top=None)
    yield "draw, penalties, log probabilities", lambda: try_draw(logits, lines, adjusted, num_top=5)


def early_cases(*, is_quick: bool) -> Iterator[tuple[str, object]]:
    """Yield what a step of single tokens launches, once more as it is when kernels are set up before their turn."""
    chosen = (
        "norm",
        "inputs",
        "rope",
        "linear bf16, 1 ",
        "linear int4 g32, 1 ",
        "long ",
        "embedding bf16",
        "slab int4 g32",
        "draw",
    )

    def launched(call: Callable[[], None]) -> None:
        launching.launch_early(is_early=True)
        try:
            call()
        finally:
            launching.launch_early(is_early=False)

    for name, call in cases(is_quick=True):
        if (name.startswith(chosen) or ", 16 parts" in name) and not (is_quick and "window" in name):
            yield named(name, "early"), lambda c=call: launched(c)


def attention_cases(
    d: int, q_heads: int, kv_heads: int, kind: torch.dtype, *, is_quick: bool
) -> Iterator[tuple[str, object]]:
    size = tile_size(q_heads // kv_heads, d)
    cache = torch.zeros((2, 2, kv_heads, 32, d), dtype=kind)
    q = torch.zeros((1, q_heads * d), dtype=kind)
    one = torch.zeros(1, dtype=torch.int32)
    tables = torch.zeros((1, 16), dtype=torch.int32)
    qkv = torch.zeros((1, (q_heads + 2 * kv_heads) * d), dtype=kind)
    norm = torch.zeros(d)
    rotation = Rotation(inv_freq=torch.zeros(d // 2), scale=1.0, q_norm=norm, k_norm=norm, eps=1e-6)
    pool = torch.zeros((2, 2, kv_heads, 32 * (d + 2)), dtype=torch.int8)
    int8_cache, scales = pool[..., : 32 * d].unflatten(-1, (32, d)), pool[..., 32 * d :].view(torch.bfloat16)
    reach = TokenReach(windows=one, num_sinks=one, turned=q)
    bare = Rotation(inv_freq=rotation.inv_freq, scale=1.0, q_norm=None, k_norm=None, eps=1e-6)
    single = Tiles(rows=one, first=one, count=one, size=1, num_parts=16)
    bent = Scoring(scale=0.1, window=512, softcap=30.0, sinks=torch.zeros(q_heads))
    for how, turned, scoring in (
        ("", bare, Scoring(scale=0.1)),
        ("norms", rotation, Scoring(scale=0.1)),
        ("norms, a layer's window, cap and sinks", rotation, bent),
    ):
        if not (is_quick and how == "norms"):
            yield (
                named(f"rotation and attention, D {d}, {q_heads}/{kv_heads} heads, 16 parts", how),
                lambda r=turned, s=scoring: single_attention(qkv, q, cache, tables, single, one, s, r),
            )
    kept = {"": {}, "int8 KV": {"scales": scales}, "window and sinks": {"reach": reach}}
    kept["int8 KV, window and sinks"] = {"scales": scales, "reach": reach}
    for how, given in kept.items() if q_heads == 4 * kv_heads else [("", {})]:
        held = int8_cache if "scales" in given else cache
        yield named(f"rope and KV write, D {d}", how), lambda h=held, g=given: qk_write(
            qkv, q, h, one, one, rotation, **g  # type: ignore[arg-type]
        )  # fmt: skip
        for length, parts in ((1, 16), (size, 1)):
            tiles = Tiles(rows=one, first=one, count=one, size=length, num_parts=parts)
            name = f"attention, D {d}, {q_heads}/{kv_heads} heads, tiles of {length}, {parts} parts"
            yield named(name, how), lambda t=tiles, h=held, g=given: attention(
                q, torch.empty_like(q), h, tables, t, one, Scoring(scale=0.1), **g  # type: ignore[arg-type]
            )  # fmt: skip
            if parts > 1 and not how:
                yield (
                    named(name, "two launches"),
                    lambda t=tiles: attention(
                        q, torch.empty_like(q), cache, tables, t, one, Scoring(scale=0.1), is_merged=False
                    ),
                )
            if not how and not is_quick:
                yield (
                    named(name, "a layer's window, cap and sinks"),
                    lambda t=tiles, s=bent: attention(q, torch.empty_like(q), cache, tables, t, one, s),
                )


def named(name: str, how: str) -> str:
    return f"{name}, {how}" if how else name


def linear_cases(
    name: str, matrix: Weight, tokens: int, kind: torch.dtype, *, is_quick: bool
) -> Iterator[tuple[str, object]]:
    x = torch.zeros((tokens, matrix.k), dtype=kind)
    n = matrix.n
    total, halves = torch.zeros((tokens, n)), torch.zeros((tokens, n // 2), dtype=kind)
    whole = torch.zeros((tokens, n), dtype=kind)
    outs = {"none": whole, "add": total, "glu": halves}
    for epilogue in ("none",) if is_quick else ("none", "add", "glu"):
        call = lambda e=epilogue: linear(x, matrix, outs[e], epilogue=Epilogue(kind=e))  # type: ignore[arg-type] # noqa: E731
        yield f"linear {name}, {tokens} tokens, {epilogue}", call
    if is_quick and name != "bf16":
        return
    normed, squares = Following(torch.zeros(n), whole, 1e-5), Squares(torch.zeros((64, tokens)), 1e-5)
    yield (
        f"linear {name}, {tokens} tokens, add, begins a norm",
        lambda: linear(x, matrix, total, epilogue=Epilogue(kind="add"), following=normed),
    )
    yield (
        f"linear {name}, {tokens} tokens, glu, ends a norm",
        lambda: linear(x, matrix, halves, epilogue=Epilogue(kind="glu"), squares=squares),
    )


def long_cases(kind: torch.dtype) -> Iterator[tuple[str, object]]:
    """Yield what stands around the vendor's products of many tokens."""
    x = torch.zeros((1, 64), dtype=kind)
    weight = dense(torch.zeros((4096, 64), dtype=kind))
    total, normed, bias = torch.zeros((1, 4096)), torch.zeros((1, 4096), dtype=kind), torch.zeros(4096)
    after = Following(bias, normed, 1e-5)
    chosen: tuple[tuple[str, Epilogue, torch.Tensor | None], ...] = (
        ("none, bias", Epilogue(), bias),
        ("add", Epilogue(kind="add"), None),
        ("glu", Epilogue(kind="glu"), None),
        ("glu, bias", Epilogue(kind="glu", activation="gelu_tanh"), bias),
        ("head", Epilogue(scale=0.5, softcap=30.0), None),
    )
    for name, epilogue, given in chosen:
        width = 2048 if epilogue.kind == "glu" else 4096
        out = torch.zeros((1, width), dtype=torch.float32 if name in ("add", "head") else kind)
        yield f"long bf16, {name}", lambda o=out, e=epilogue, b=given: long_linear(x, weight, o, b, e)
    gated, rounded = room_in(torch.zeros((1, 14336), dtype=kind)), room_in(normed)
    both, summed = torch.zeros((1, 2 * 14336), dtype=kind), Following(bias, rounded, 1e-5)
    yield "long fp8, glu to e4m3", lambda: finish(both, gated, None, Epilogue(kind="glu"))
    yield "long fp8, add, norm to e4m3", lambda: long_linear(x, weight, total, None, Epilogue(kind="add"), summed)
    for width in (4096, 28672):
        yield f"long fp8, {width} to e4m3", lambda w=width: round_tokens(torch.zeros((1, w), dtype=kind))
    for given in (None, bias):
        name = "long bf16, add, norm" if given is None else "long bf16, add, bias, norm"
        yield name, lambda b=given: long_linear(x, weight, total, b, Epilogue(kind="add"), after)


def chosen(arch: int, *, is_quick: bool) -> Iterator[tuple[str, object]]:
    """Yield the cases that are served on an architecture."""
    for name, call in cases(is_quick=is_quick):
        if arch >= 89 or not ("fp8" in name or "e4m3" in name):
            yield name, call
    if arch >= 90:
        yield from early_cases(is_quick=is_quick)
    elif is_quick:  # the heads that want most of the little shared memory there
        yield from attention_cases(256, 32, 8, torch.bfloat16, is_quick=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten")
    parser.add_argument("--quick", action="store_true", help="one head size and one epilogue of each kernel")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    driver = CompileOnly(args.arch)
    triton.runtime.driver.set_active(driver)
    launching.compile_only()
    rows: list[dict[str, object]] = []
    with launching.compiling_ahead(os.cpu_count() or 1):  # several at a time
        for _, call in chosen(args.arch, is_quick=args.quick):
            call()  # type: ignore[operator]
    for name, call in chosen(args.arch, is_quick=args.quick):
        driver.found.clear()
        call()  # type: ignore[operator]
        rows += [{"case": name, **found} for found in driver.found]
    for row in rows:
        print(f"{row['registers']!s:>4} registers {row['spill_bytes']!s:>5} B stack {row['shared']!s:>7} B shared  "
              f"{row['kernel']:<14} {row['case']}")  # fmt: skip
    failed = launching.failed_kernels()
    print(f"{len(rows)} kernels compiled for sm_{args.arch}; failed: {', '.join(failed) or 'none'}")
    if args.json is not None:
        facts = {"arch": args.arch, "torch": torch.__version__, "triton": triton.__version__, "kernels": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
