"""The native library: finding it, loading it, and the one signature table of its plain C ABI.

Owns: the loaded library, a process-wide constant after the first `library()`. A missing library is a fact, not an
error: `load_failure()` says why, and the caller chooses another backend. Calls through ctypes release the GIL.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from headrace.core.errors import ConfigError

ABI_VERSION = 1
LIBRARY_PATH = Path(__file__).with_name("libheadrace.so")
ISAS = ("generic", "avx2", "avxvnni", "avx512", "avx512bf16", "amx", "neon")
EMULATED_ISA = "amx-emulated"  # the AMX path's code on AVX-512 machines, for tests; never chosen


class CPackedWeight(ctypes.Structure):
    """`PackedWeight` of csrc/linear.h, field for field."""

    _fields_ = (
        ("format", c_int32),
        ("group", c_int32),
        ("asymmetric", c_int32),
        ("interleaved", c_int32),
        ("n", c_int64),
        ("k", c_int64),
        ("base", c_void_p),
    )


_WEIGHT = c_void_p  # byref(CPackedWeight), or of any struct with the same fields

# name -> (result, arguments); csrc/capi_linear.cpp states what each does.
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "hr_abi_version": (c_int32, ()),
    "hr_isa": (c_char_p, ()),
    "hr_isa_name": (c_char_p, (c_int32,)),
    "hr_tiles_failed": (c_int32, ()),
    "hr_check_tiles": (c_int32, ()),
    "hr_has_isa": (c_int32, (c_int32,)),
    "hr_set_isa": (c_int32, (c_char_p,)),
    "hr_pool_create": (c_void_p, (c_int32, POINTER(c_int32))),
    "hr_pool_destroy": (None, (c_void_p,)),
    "hr_pool_threads": (c_int32, (c_void_p,)),
    "hr_pool_pin_caller": (None, (c_void_p,)),
    "hr_packed_bytes": (c_int64, (_WEIGHT,)),
    "hr_packed_blocks": (c_int64, (_WEIGHT,)),
    "hr_act_bytes": (c_int64, (_WEIGHT, c_int64)),
    "hr_can_pack": (c_int32, (c_int32, _WEIGHT)),
    "hr_pack": (c_int32, (c_void_p, _WEIGHT, c_int32, c_void_p, c_void_p, c_int64, c_int64)),
    "hr_unpack": (c_int32, (_WEIGHT, c_int64, c_int64, c_void_p)),
    "hr_prepare": (c_int32, (_WEIGHT, c_void_p, c_int64, c_int64, c_void_p)),
    "hr_linear": (
        c_int32,
        (
            c_void_p,
            _WEIGHT,
            c_void_p,
            c_int64,
            c_int64,
            c_void_p,
            c_void_p,
            c_int64,
            c_void_p,
            c_int32,
            c_int32,
            c_int32,
        ),
    ),
    "hr_spin_int8": (c_int64, (c_void_p, c_int64)),
    "hr_spin_bf16": (c_int64, (c_void_p, c_int64)),
    "hr_read_memory": (c_int64, (c_void_p, c_void_p, c_int64, c_int64)),
}


@cache
def _load() -> ctypes.CDLL | str:
    """Return the library with its signatures set, or why there is none."""
    if not LIBRARY_PATH.exists():
        return f"{LIBRARY_PATH.name} was not built; run `python setup.py build_native` with a C++20 compiler on PATH"
    try:
        loaded = ctypes.CDLL(str(LIBRARY_PATH))
    except OSError as error:
        return f"{LIBRARY_PATH.name} cannot be loaded: {error}"
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:
            return f"{LIBRARY_PATH.name} lacks {name}; rebuild it with `python setup.py build_native`"
        function.restype = result
        function.argtypes = arguments
    version = loaded.hr_abi_version()
    if version != ABI_VERSION:
        return f"{LIBRARY_PATH.name} has ABI {version}, this package needs {ABI_VERSION}; rebuild it"
    return loaded


def load_failure() -> str | None:
    """Say why the native engine is not available; None when it is."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def library() -> ctypes.CDLL:
    """Return the loaded library. Raises ConfigError with the remedy when there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise ConfigError(f"the native engine is not available: {loaded}; or choose the backend `reference`")
    return loaded


def active_isa() -> str:
    """Return the instruction set the kernels use, e.g. `avx512bf16`."""
    name = library().hr_isa()
    assert isinstance(name, bytes)
    return name.decode()


def tiles_failed() -> bool:
    """True if this machine has AMX but failed the check at load: AVX-512 is used instead. Tell the user once."""
    return bool(library().hr_tiles_failed())


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets this build and this CPU can run, slowest first."""
    return tuple(name for i, name in enumerate(ISAS) if library().hr_has_isa(i))


def can_emulate_tiles() -> bool:
    """True if `set_isa(EMULATED_ISA)` works here."""
    return "avx512bf16" in available_isas()


def set_isa(name: str) -> None:
    """Force an instruction set for the whole process; `auto` is the best. Not while a step runs.

    Raises ConfigError if this machine cannot run it.
    """
    if library().hr_set_isa(name.encode()):
        raise ConfigError(
            f"instruction set '{name}' is not available here; this machine has {', '.join(available_isas())}"
        )


class Pool:
    """A team of pinned threads; the caller is one of them. `close()` or a `with` block ends the threads."""

    def __init__(self, threads: int, cpus: tuple[int, ...] | None = None) -> None:
        """Start threads-1 workers. cpus: the CPU of each thread; None: those the process may use, in order."""
        if cpus is not None and len(cpus) != threads:
            raise ConfigError(f"{len(cpus)} CPUs for {threads} threads; give one each")
        array = None if cpus is None else (c_int32 * threads)(*cpus)
        self._handle: int | None = library().hr_pool_create(threads, array)
        if self._handle is None:
            raise ConfigError(f"{threads} threads asked for; a pool has 1 to 1024")
        self.threads = threads

    @property
    def handle(self) -> int:
        """Return the address of the native pool. Raises ValueError after `close()`."""
        if self._handle is None:
            raise ValueError("pool is closed")
        return self._handle

    def pin_caller(self) -> None:
        """Pin the calling thread to the first CPU of the pool."""
        library().hr_pool_pin_caller(self.handle)

    def close(self) -> None:
        """End the worker threads. Idempotent."""
        if self._handle is not None:
            library().hr_pool_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
