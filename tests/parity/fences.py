"""Memory between two pages that cannot be touched: an op that reads or writes one byte too far ends the process.

`fenced` places an array right before the page behind it or right behind the page in front of it; `FencedNumpy` stands
in for numpy in a module under test, so that every array the module makes for itself is placed so, too.
Who calls: the parity tests of native code. What native code allocates for itself is not fenced.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Side = Literal["end", "start"]
SIDES: tuple[Side, ...] = ("end", "start")
T = TypeVar("T", bound=np.generic)

_PROTECT = ctypes.CDLL(None, use_errno=True).mprotect
_PROTECT.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def fenced_bytes(num_bytes: int, side: Side, *, alignment: int = 1) -> NDArray[np.uint8]:
    """Return zeros that end where a page without access begins, or begin where one ends.

    An end that would leave the beginning unaligned moves up to the alignment's next multiple less.
    """
    page = mmap.PAGESIZE
    inner = -(-num_bytes // page) * page
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    area = np.frombuffer(mmap.mmap(-1, inner + 2 * page, flags), np.uint8)  # unmapped whole with the last view of it
    for guard in (0, page + inner):
        if _PROTECT(area.ctypes.data + guard, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect refuses a page without access")
    first = page if side == "start" else page + (inner - num_bytes) // alignment * alignment
    return area[first : first + num_bytes]


def fenced(values: NDArray[T], side: Side) -> NDArray[T]:
    """Return a copy of an array that is fenced."""
    copy = fenced_bytes(values.nbytes, side).view(values.dtype).reshape(values.shape)
    np.copyto(copy, values)
    return copy


class FencedNumpy:
    """numpy, but the arrays its functions make, not views, are fenced. For `monkeypatch.setattr(module, "np", …)`."""

    def __init__(self, side: Side) -> None:
        self._side = side

    def __getattr__(self, name: str) -> object:
        found = getattr(np, name)
        return found if isinstance(found, type) or not callable(found) else self._fencing(found)

    def _fencing(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            result = function(*args, **kwargs)
            makes = isinstance(result, np.ndarray) and result.flags.owndata
            return fenced(result, self._side) if makes else result

        return call
