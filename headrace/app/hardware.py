"""What this machine has: cores, instruction sets, memory, installed extras. Read only, never cached.

Invariant: limits of a container count, not those of the host: affinity and CPU quota for cores, cgroup for memory.
Called by `plan` (what fits), `doctor` (what is here) and `loading`.
Source: proc(5), cgroups(7).
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

_ISA_FLAGS = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
_EXTRAS = {
    "gpu": ("torch", "triton"),
    "ray": ("ray",),
    "postgres": ("asyncpg",),
    "audit": ("cryptography",),
    "otel": ("opentelemetry",),
}
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One machine as this process may use it. Memory in bytes; `memory_limit` is the container's, None without one."""

    cpu: str
    architecture: str
    cores: int
    isa: tuple[str, ...]
    memory_total: int
    memory_available: int
    memory_limit: int | None
    extras: tuple[str, ...]
    python: str
    taken: int = 0  # of the memory, by models that are planned but not loaded yet

    def without(self, num_bytes: int) -> Hardware:
        """Return the same machine after something has taken `num_bytes` of its memory."""
        left = max(0, self.memory_available - num_bytes)
        return replace(self, memory_available=left, taken=self.taken + num_bytes)


def detect() -> Hardware:
    """Look at this machine. Cost: a few small files."""
    cpuinfo = _fields("/proc/cpuinfo")
    meminfo = _fields("/proc/meminfo")
    total = _kib(meminfo.get("MemTotal", "0"))
    available = _kib(meminfo.get("MemAvailable", "0"))
    limit, used = _cgroup_memory()
    if limit is not None:
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return Hardware(
        cpu=cpuinfo.get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=_cores(),
        isa=tuple(flag for flag in _ISA_FLAGS if flag in flags),
        memory_total=total,
        memory_available=available,
        memory_limit=limit,
        extras=tuple(name for name, modules in _EXTRAS.items() if all(map(_is_installed, modules))),
        python=sys.version.split()[0],
    )


def _cores() -> int:
    """Count the cores that affinity and CPU quota leave to this process, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, cores)


def _cgroup_memory() -> tuple[int | None, int]:
    """Return the tightest memory limit of this process's cgroup and its ancestors, and what is used under it."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        kind, _, path = line.partition("::")
        if kind != "0":
            continue
        group = _CGROUP / path.strip("/")
        found: list[tuple[int, int]] = []
        for level in (group, *group.parents):
            limit = _read(level / "memory.max").strip()
            if limit.isdigit():
                found.append((int(limit), _reclaimable_use(level)))
            if level == _CGROUP:
                break
        if found:
            return min(found)
    limit = _read(_CGROUP / "memory/memory.limit_in_bytes").strip()
    if limit.isdigit() and int(limit) < 1 << 60:
        return int(limit), int(_read(_CGROUP / "memory/memory.usage_in_bytes").strip() or 0)
    return None, 0


def _reclaimable_use(level: Path) -> int:
    """Return what is used and cannot be dropped: file pages do not count."""
    used = int(_read(level / "memory.current").strip() or 0)
    stat = dict(line.split() for line in _read(level / "memory.stat").splitlines())
    return max(0, used - int(stat.get("inactive_file", 0)) - int(stat.get("active_file", 0)))


def _fields(path: str) -> dict[str, str]:
    """Read `key: value` lines; of repeated keys the first counts."""
    fields: dict[str, str] = {}
    for line in _read(Path(path)).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _kib(value: str) -> int:
    return int(value.split()[0]) * 1024


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
