"""What a run cost this process: seconds since it was started and the most memory it held. Linux counts both."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path


def seconds_since_start() -> float | None:
    """Return seconds since this process was started, interpreter included; None where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far, mapped weights included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
