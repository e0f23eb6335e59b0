"""Counters of programs that have arrived: whoever counts to the end adds up what the others left.

Owns: counters for whoever lends none, one array per device. Read by `attention`, `linear` and `sampling`.
Invariant: zero between launches. Launches that follow each other on one queue share an array; whoever launches beside
others, as a model that is warmed up while another one serves, needs its own and lends it with `counting_with`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NUM_COUNTERS = 1 << 18  # that one launch can have

_lent = threading.local()
_shared: dict[torch.device, torch.Tensor] = {}


def new_counters(device: torch.device) -> torch.Tensor:
    """Return counters [NUM_COUNTERS] int32, all zero."""
    return torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)


@contextmanager
def counting_with(counters: torch.Tensor) -> Iterator[None]:
    """Let this thread's launches count with these."""
    before = getattr(_lent, "counters", None)
    _lent.counters = counters
    try:
        yield
    finally:
        _lent.counters = before


def counters_of(device: torch.device) -> torch.Tensor:
    """Return what a launch counts with. Made by the first launch, which is never one that a graph records."""
    held: torch.Tensor | None = getattr(_lent, "counters", None)
    if held is not None:
        return held
    if device not in _shared:
        _shared[device] = new_counters(device)
    return _shared[device]
