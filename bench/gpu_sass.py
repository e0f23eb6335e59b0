"""Read the machine code of the cuda backend's kernels, without a GPU: what a turn of each innermost loop issues.

    python bench/gpu_sass.py --only 'linear int4 g32, 1 '
    python bench/gpu_sass.py --only 'attention, D 128' --dump sass/

Instructions are counted for one warp and one turn, by what they do; a multiprocessor issues four a clock. `matrix` are
products of the matrix units: HGMMA works on tiles of four warps, HMMA on those of one, several times slower.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gpu_compile  # before the kernels: it has them compiled, not interpreted
import triton

from headrace.ops.cuda import launching

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
# What an opcode is for, by its beginning; the first that fits counts.
_KINDS = {
    "matrix": ("HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA"),
    "load": ("LDGSTS", "LDG", "UTMALDG", "UBLKCP", "LD.", "LDL"),
    "store": ("STG", "ST.", "STL", "RED", "ATOM"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "MOVM"),
    "wait": (
        "BAR",
        "LDGDEPBAR",
        "DEPBAR",
        "SYNCS",
        "WARPSYNC",
        "WARPGROUP",
        "MEMBAR",
        "FENCE",
        "CCTL",
        "ERRBAR",
        "NOP",
    ),
    "convert": ("I2F", "F2I", "F2F", "I2I", "F2FP", "I2FP"),
    "special": ("MUFU", "SHFL", "VOTE", "REDUX"),
    "half": ("HFMA2", "HADD2", "HMUL2", "HMNMX2", "HSET"),
    "float": ("FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSET", "DFMA", "DADD", "DMUL", "DSET", "FCHK"),
    "bits": ("LOP3", "SHF", "PRMT", "PLOP3", "ULOP3", "USHF", "SGXT", "BMSK", "UPRMT"),
}
SHOWN = (*_KINDS, "other")


@dataclass(frozen=True, slots=True)
class Loop:
    """An innermost loop: where it lies, and how often a turn issues each opcode."""

    first: int
    last: int
    opcodes: Counter[str]

    @property
    def kinds(self) -> Counter[str]:
        """Count by what the instructions are for."""
        found: Counter[str] = Counter()
        for opcode, count in self.opcodes.items():
            found[kind_of(opcode)] += count
        return found


def kind_of(opcode: str) -> str:
    """Say what an opcode is for."""
    return next((kind for kind, names in _KINDS.items() if opcode.startswith(names)), "other")


def disassembled(binary: bytes) -> str:
    """Return a cubin's machine code as text."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout


def innermost_loops(text: str) -> list[Loop]:
    """Return the loops of one kernel that have no other in them, in their order."""
    lines = [(int(at, 16), opcode, rest) for at, opcode, rest in _LINE.findall(text)]
    spans = set()
    for at, opcode, rest in lines:
        target = re.search(r"0x([0-9a-f]+)\s*$", rest)
        if opcode.startswith("BRA") and target and int(target[1], 16) < at:  # a branch to itself pads the end
            spans.add((int(target[1], 16), at))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [
        Loop(first, last, Counter(opcode for at, opcode, _ in lines if first <= at <= last))
        for first, last in sorted(inner)
    ]


class Reader(gpu_compile.CompileOnly):
    """Keeps the machine code of what is compiled."""

    def __init__(self, arch: int) -> None:
        super().__init__(arch)
        self.code: list[tuple[str, str]] = []

    def _load(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        self.code.append((name.lstrip("_"), disassembled(binary)))
        return super()._load(name, binary, shared, device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten")
    parser.add_argument("--only", default="", help="part of the names of the cases to read")
    parser.add_argument("--least", type=int, default=16, help="leave out loops of fewer instructions")
    parser.add_argument("--opcodes", action="store_true", help="each opcode of each loop as well")
    parser.add_argument("--dump", type=Path, help="folder for the machine code")
    args = parser.parse_args()
    driver = Reader(args.arch)
    triton.runtime.driver.set_active(driver)
    launching.compile_only()
    print(f"{'':30}  turn " + "".join(f"{kind:>8}" for kind in SHOWN))
    num_cases = 0
    for name, call in gpu_compile.chosen(args.arch, is_quick=False):
        if args.only not in name:
            continue
        driver.code.clear()
        driver.found.clear()
        call()  # type: ignore[operator]
        num_cases += bool(driver.code)
        for (kernel, text), facts in zip(driver.code, driver.found, strict=True):
            print(f"{name}: {kernel}, {facts['registers']} registers, {facts['spill_bytes']} B stack, "
                  f"{facts['shared']} B shared")  # fmt: skip
            for loop in innermost_loops(text):
                size = loop.opcodes.total()
                if size >= args.least:
                    kinds = loop.kinds
                    print(f"  {loop.first:#8x} … {loop.last:#8x}         {size:6} "
                          + "".join(f"{kinds[kind]:8}" for kind in SHOWN))  # fmt: skip
                    if args.opcodes:
                        print("      " + ", ".join(f"{count} {opcode}" for opcode, count in loop.opcodes.most_common()))
            if args.dump is not None:
                args.dump.mkdir(parents=True, exist_ok=True)
                (args.dump / f"{re.sub('[^a-zA-Z0-9]+', '-', name)}-{kernel}.sass").write_text(text)
    print(f"{num_cases} cases read for sm_{args.arch} with Triton {triton.__version__}")
    return 0 if num_cases else 1


if __name__ == "__main__":
    sys.exit(main())
