"""Build the native library: every csrc/*.cpp into headrace/ops/native/libheadrace.so, then the wheel around it.

    python setup.py build_native     compile what changed (by time stamps, headers included) and link in place

Instruction sets: the end of a file's name gives its flags, so one library serves every machine of a platform and
chooses at run time. `x_avx2.cpp` AVX2 FMA F16C; `x_avx512.cpp` AVX-512 with VNNI and BF16; `x_amx.cpp` that and AMX;
`x_neon.cpp` ARMv8.2 dot product; any other name the platform's baseline. A file that the target or compiler cannot
compile is left out. Rounding: -ffp-contract=off everywhere but in kernels_*.cpp: products fuse only where the source
says fma.

No Python headers: the library is plain C ABI for ctypes, so one wheel (py3-none-<platform>) serves every Python.
Without a compiler the package still installs; it then runs on the numpy backend, and the build says so once.
Environment: CXX chooses the compiler; HEADRACE_CXXFLAGS is appended to every compile and to the link.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent.resolve()
SOURCES = ROOT / "csrc"
OBJECTS = ROOT / "build" / "native"
LIBRARY = Path("headrace", "ops", "native", "libheadrace.so")

COMMON = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-Wno-ignored-attributes",
    "-pthread",
]
AVX2 = "-mavx2 -mfma -mf16c -mbmi2"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mprefer-vector-width=512"
ISA_FLAGS = {
    "x86_64": {"avx2": AVX2, "avx512": AVX512, "amx": f"{AVX512} -mamx-tile -mamx-int8 -mamx-bf16"},
    "aarch64": {"neon": "-march=armv8.2-a+dotprod+fp16"},
}
SUFFIXES = {suffix for flags in ISA_FLAGS.values() for suffix in flags}


class NoCompiler(Exception):
    """No C++ compiler, or one that cannot compile the sources; the message says which and why."""


class Compiler:
    """One C++ compiler and the flags every file gets."""

    def __init__(self) -> None:
        wanted = os.environ.get("CXX")
        for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
            if shutil.which(name.split()[0]):
                self.command = name.split()
                break
        else:
            raise NoCompiler(f"no C++ compiler ({wanted or 'g++, clang++, c++'}) on PATH")
        self.extra = os.environ.get("HEADRACE_CXXFLAGS", "").split()
        self.machine = self._machine()

    def _machine(self) -> str:
        """Return the target's architecture: a cross compiler's, not this machine's."""
        triple = subprocess.run([*self.command, "-dumpmachine"], capture_output=True, text=True, check=False).stdout
        machine = triple.split("-")[0] or platform.machine()
        return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)

    def accepts(self, flags: list[str]) -> bool:
        """True if an empty file compiles with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text("int probe;\n")
            command = [*self.command, *flags, "-c", str(probe), "-o", str(probe.with_suffix(".o"))]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def flags(self, source: Path) -> list[str] | None:
        """Return this file's flags; None if the target or the compiler has no such instruction set."""
        contract = "fast" if source.name.startswith("kernels_") else "off"
        flags = [*COMMON, f"-ffp-contract={contract}"]
        suffix = source.stem.rpartition("_")[2]
        if suffix not in SUFFIXES:
            return [*flags, *self.extra]
        isa = ISA_FLAGS.get(self.machine, {}).get(suffix)
        if isa is None or not self.accepts(isa.split()):
            return None
        return [*flags, *isa.split(), *self.extra]

    def run(self, arguments: Iterable[str]) -> None:
        """Run the compiler; NoCompiler with its message if it fails."""
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        if done.stderr:
            print(done.stderr, file=sys.stderr)
        if done.returncode:
            raise NoCompiler(f"{' '.join(self.command)} failed")


def is_current(target: Path, inputs: Iterable[Path]) -> bool:
    """True if `target` is newer than every input."""
    if not target.exists():
        return False
    made = target.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in inputs)


def listed_inputs(depfile: Path) -> list[Path] | None:
    """Return the files a compiler-written .d file names; None before the first compile."""
    if not depfile.exists():
        return None
    return [Path(word) for word in depfile.read_text().replace("\\\n", " ").partition(":")[2].split()]


def build_native() -> Path:
    """Compile and link in place; return the library's path. Raises NoCompiler."""
    compiler = Compiler()
    plan: list[tuple[Path, Path, list[str]]] = []
    defines: list[str] = []
    for source in sorted(SOURCES.glob("*.cpp")):
        flags = compiler.flags(source)
        if flags is None:
            continue
        suffix = source.stem.rpartition("_")[2]
        if suffix in SUFFIXES and f"-DHEADRACE_HAS_{suffix.upper()}=1" not in defines:
            defines.append(f"-DHEADRACE_HAS_{suffix.upper()}=1")
        plan.append((source, Path(), flags))
    jobs = []
    for source, _, flags in plan:
        arguments = [*flags, *defines]
        key = hashlib.sha256(" ".join([*compiler.command, *arguments]).encode()).hexdigest()[:12]
        jobs.append((source, OBJECTS / f"{source.stem}-{key}.o", arguments))
    OBJECTS.mkdir(parents=True, exist_ok=True)

    def compile_one(job: tuple[Path, Path, list[str]]) -> None:
        source, target, arguments = job
        inputs = listed_inputs(target.with_suffix(".d"))
        if inputs is None or source not in inputs or not is_current(target, inputs):  # copied objects name others
            print(f"compiling {source.name}", flush=True)
            partial = target.with_suffix(f".{os.getpid()}.tmp")
            deps = ["-MMD", "-MF", str(target.with_suffix(".d")), "-MT", "object"]
            compiler.run([*arguments, *deps, "-c", str(source), "-o", str(partial)])
            partial.replace(target)

    # The files of an instruction set take longest: begin with them, so that none is left for the end.
    jobs.sort(key=lambda job: job[0].stem.rpartition("_")[2] not in SUFFIXES)
    with ThreadPoolExecutor(os.cpu_count() or 1) as workers:
        list(workers.map(compile_one, jobs))
    library = ROOT / LIBRARY
    objects = [target for _, target, _ in jobs]
    stamp = OBJECTS / f"{library.name}.inputs"
    names = "\n".join(str(path) for path in objects)
    if not is_current(library, objects) or not stamp.exists() or stamp.read_text() != names:
        partial = library.with_suffix(f".{os.getpid()}.tmp")
        static = ["-static-libstdc++", "-static-libgcc"] if sys.platform.startswith("linux") else []
        compiler.run(["-shared", *map(str, objects), *static, "-pthread", *compiler.extra, "-o", str(partial)])
        partial.replace(library)
        stamp.write_text(names)
    return library


class BuildNative(Command):
    """`python setup.py build_native`: compile and link in place."""

    description = "compile csrc/ into headrace/ops/native/libheadrace.so"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        print(build_native())


class BuildPy(build_py):
    """Python files plus, where a compiler is found, the library."""

    def run(self) -> None:
        try:
            library = build_native()
        except NoCompiler as error:
            print(f"headrace: no native engine: {error}; the numpy backend will be used", file=sys.stderr)
            library = None
        super().run()
        if library is not None and not self.editable_mode:
            target = Path(self.build_lib) / LIBRARY
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)


class Wheel(bdist_wheel):
    """One wheel for every Python of a platform; for any platform where there is no library."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        if not (ROOT / LIBRARY).exists():
            return "py3", "none", "any"
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Installs to platlib: the package carries machine code."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_native": BuildNative, "build_py": BuildPy, "bdist_wheel": Wheel}, distclass=BinaryDistribution)
