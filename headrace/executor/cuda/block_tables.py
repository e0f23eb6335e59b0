"""`BlockTables`: which blocks hold each sequence's positions, kept on the device and changed only where they change.

Owns: the device table [lines, width] and which sequence has which line. A step brings the changes as (place, block)
pairs; a sequence that decodes brings one about every `block_size` tokens.
Invariant: after a step's changes are applied, line l holds block b at place p // block_size for every position p that
the sequence's layers may read; places of evicted blocks, which lie behind those of the sinks, are stale and never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.request import SeqId
from headrace.core.step import Row, Step


@dataclass(slots=True)
class _Entry:
    """One sequence's line, and what it says."""

    line: int
    blocks: tuple[int, ...] = ()
    num_evicted: int = 0
    num_front: int = 0  # blocks of the sinks, in front of those evicted


class BlockTables:
    """Lines of `width` places for up to `num_lines` sequences."""

    def __init__(self, device: torch.device, *, num_lines: int, width: int, block_size: int) -> None:
        self.device_table = torch.zeros((num_lines, width), dtype=torch.int32, device=device)
        self._width = width
        self._block_size = block_size
        self._entries: dict[SeqId, _Entry] = {}
        self._free = list(range(num_lines - 1, -1, -1))

    def update(self, step: Step) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return each row's line, and the changes [2, n]: places in the flat table, and blocks."""
        places: list[NDArray[np.int32]] = []
        blocks: list[NDArray[np.int32]] = []
        lines = np.empty(len(step.rows), np.int32)
        for i, row in enumerate(step.rows):
            entry = self._entries.get(row.seq_id) or self._add(row.seq_id, step)
            lines[i] = entry.line
            if entry.blocks is row.blocks and entry.num_evicted == row.num_evicted:
                continue
            num_front = 0 if row.reach is None else -(-row.reach.num_sinks // self._block_size)
            first = _first_change(entry, row, num_front)
            entry.blocks, entry.num_evicted, entry.num_front = row.blocks, row.num_evicted, num_front
            end = len(row.blocks) + row.num_evicted
            if end > self._width:
                raise ValueError(
                    f"sequence {row.seq_id} is {end} blocks long; this executor has room for {self._width}"
                )
            own = np.arange(first, len(row.blocks), dtype=np.int32)
            own[own >= num_front] += row.num_evicted
            places.append(entry.line * self._width + own)
            blocks.append(np.array(row.blocks[first:], np.int32))
        if not places:
            return lines, np.empty((2, 0), np.int32)
        return lines, np.stack((np.concatenate(places), np.concatenate(blocks)))

    def apply(self, changes: torch.Tensor) -> None:
        """Write changes that have come to the device."""
        if changes.shape[1]:
            self.device_table.view(-1)[changes[0].long()] = changes[1]

    def _add(self, seq_id: SeqId, step: Step) -> _Entry:
        """Give a new sequence a line; sequences that are not in this step make room if need be."""
        if not self._free:
            present = {row.seq_id for row in step.rows}
            for old in [known for known in self._entries if known not in present]:
                self._free.append(self._entries.pop(old).line)
        if not self._free:
            raise ValueError(f"a step of {len(step.rows)} rows; this executor has lines for {len(self._entries)}")
        entry = _Entry(self._free.pop())
        self._entries[seq_id] = entry
        return entry


def _first_change(entry: _Entry, row: Row, num_front: int) -> int:
    """Return from which block on a row's line has to be written: those that stay are where they were."""
    gone = row.num_evicted - entry.num_evicted
    if gone < 0 or num_front != entry.num_front:
        return 0
    known = entry.blocks[:num_front] + entry.blocks[num_front + gone :]
    return len(known) if row.blocks[: len(known)] == known else 0
