"""`HostPin`: host memory of KV blocks, locked so that the device copies it without the host.

Owns: that the memory is registered with the driver, until `release`. Called by `executor.cuda.executor`.
Memory that the driver does not take (a limit on locked memory) still serves: copies then go through a buffer of the
driver's and are slower. That is a warning, once. CUDA remembers the error of such a call, and whoever launches the next
kernel finds it: so it is taken back here.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Protocol

import numpy as np
import torch

_PORTABLE = 1  # cudaHostRegisterPortable: every context sees it as locked
_log = logging.getLogger(__name__)


class Driver(Protocol):
    """What locks memory: CUDA's runtime. Both calls return 0 where they worked."""

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        """Lock memory."""
        ...

    def cudaHostUnregister(self, address: int) -> int:
        """Let it go."""
        ...

    def forget_error(self) -> None:
        """Take back what the last failed call has left for the next launch of a kernel."""
        ...


class _Runtime:
    """CUDA's runtime, as torch has it."""

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        return int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, flags))

    def cudaHostUnregister(self, address: int) -> int:
        return int(torch.cuda.cudart().cudaHostUnregister(address))

    def forget_error(self) -> None:
        with contextlib.suppress(RuntimeError):  # torch asks for it behind each launch, and raises it once
            torch.zeros(1, device="cuda")


class HostPin:
    """Locks one piece of memory."""

    def __init__(self, memory: memoryview, driver: Driver | None = None) -> None:
        held = np.frombuffer(memory, np.uint8)
        self._address = int(held.ctypes.data)
        self._driver = driver or _Runtime()
        code = self._driver.cudaHostRegister(self._address, held.size, _PORTABLE)
        self.is_locked = code == 0
        if not self.is_locked:
            self._driver.forget_error()
            _log.warning(
                "%s MiB of host memory for KV blocks cannot be locked (CUDA error %s): copies from and to it are "
                "slower; raise the limit on locked memory (ulimit -l), or lower engine.kv_ram_bytes",
                f"{held.size >> 20:,}", code,
            )  # fmt: skip

    def release(self) -> None:
        """Unlock the memory, which may then be freed. Idempotent."""
        if self.is_locked:
            self.is_locked = False
            if self._driver.cudaHostUnregister(self._address):
                self._driver.forget_error()
