"""How much room the disk has, behind a name so that tests can have a small disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

FreeBytes = Callable[[Path], int]


def free_bytes(path: Path) -> int:
    """Return the bytes that may still be written where `path` lies."""
    return shutil.disk_usage(path).free
