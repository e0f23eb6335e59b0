"""`BlockTables`: which blocks hold each sequence's positions, kept on the device and changed only where they change.

Owns: the device table [lines, width], the same on the host, and which sequence has which line. A step brings the
changes as (place, block) pairs; a sequence that decodes brings one about every `block_size` tokens.
Invariant: line l of the host's table, and of the device's after a step's changes are applied, holds block b at place
p // block_size for every position p that the sequence's layers may read; places of evicted blocks, which lie behind
those of the sinks, are stale and never read. The device's table has one line more: padded changes are written there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.request import SeqId
from headrace.core.step import Row, Step

_NO_CHANGES = np.empty((2, 0), np.int32)


@dataclass(slots=True, eq=False)
class _Entry:
    """One sequence's line, and what it says."""

    line: int
    blocks: tuple[int, ...] = ()
    num_evicted: int = 0
    num_front: int = 0  # blocks of the sinks, in front of those evicted


class BlockTables:
    """Lines of `width` places for up to `num_lines` sequences.

    host_table  [num_lines, width] int32, for whoever packs steps
    capacities  [num_lines] int32: positions that a line has blocks for
    """

    def __init__(self, device: torch.device, *, num_lines: int, width: int, block_size: int) -> None:
        self.device_table = torch.zeros((num_lines + 1, width), dtype=torch.int32, device=device)
        self.host_table = np.zeros((num_lines, width), np.int32)
        self.capacities = np.zeros(num_lines, np.int32)
        self._width = width
        self._block_size = block_size
        self._entries: dict[SeqId, _Entry] = {}
        self._free = list(range(num_lines - 1, -1, -1))

    @property
    def num_lines(self) -> int:
        """Count the sequences that have room."""
        return len(self.host_table)

    def update(self, step: Step) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return each row's line, and the changes [2, n]: places in the flat table, and blocks."""
        rows, known = step.rows, self._entries.get
        entries = [known(row.seq_id) or self._add(row.seq_id, step) for row in rows]
        lines = np.array([entry.line for entry in entries], np.int32)
        places: list[int] = []
        blocks: list[int] = []
        for entry, row in zip(entries, rows, strict=True):
            if entry.blocks is not row.blocks or entry.num_evicted != row.num_evicted:
                self._write(entry, row, places, blocks)
        if not places:
            return lines, _NO_CHANGES
        changes = np.array((places, blocks), np.int32)
        self.host_table.reshape(-1)[changes[0]] = changes[1]
        return lines, changes

    def apply(self, changes: torch.Tensor) -> None:
        """Write changes that have come to the device."""
        if changes.shape[1]:
            self.device_table.view(-1)[changes[0].long()] = changes[1]

    def _write(self, entry: _Entry, row: Row, places: list[int], blocks: list[int]) -> None:
        """Name the places of a line that change, and the blocks that come there."""
        num_front = 0 if row.reach is None else -(-row.reach.num_sinks // self._block_size)
        first, end = _first_change(entry, row, num_front), len(row.blocks) + row.num_evicted
        if end > self._width:
            raise ValueError(f"sequence {row.seq_id} is {end} blocks long; this executor has room for {self._width}")
        entry.blocks, entry.num_evicted, entry.num_front = row.blocks, row.num_evicted, num_front
        self.capacities[entry.line] = end * self._block_size
        start = entry.line * self._width
        places += range(start + first, start + min(num_front, len(row.blocks)))
        places += range(start + max(first, num_front) + row.num_evicted, start + end)
        blocks += row.blocks[first:]

    def _add(self, seq_id: SeqId, step: Step) -> _Entry:
        """Give a new sequence a line; sequences that are not in this step make room if need be."""
        if not self._free:
            present = {row.seq_id for row in step.rows}
            for old in [known for known in self._entries if known not in present]:
                self._free.append(self._entries.pop(old).line)
        if not self._free:
            raise ValueError(f"a step of {len(step.rows)} rows; this executor has lines for {len(self._entries)}")
        entry = _Entry(self._free.pop())
        self.capacities[entry.line] = 0
        self._entries[seq_id] = entry
        return entry


def _first_change(entry: _Entry, row: Row, num_front: int) -> int:
    """Return from which block on a row's line has to be written: those that stay are where they were."""
    gone = row.num_evicted - entry.num_evicted
    if gone < 0 or num_front != entry.num_front:
        return 0
    known = entry.blocks[:num_front] + entry.blocks[num_front + gone :]
    return len(known) if row.blocks[: len(known)] == known else 0
