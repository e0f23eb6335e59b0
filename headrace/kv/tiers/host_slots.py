"""Which block is in which host slot, and which slot is free for whom: the RAM tier as integers.

Owns: slots and entries; the bytes are `transfer.HostPool`'s. Called on the engine thread alone.
Fences: a copy inside a Step touches its slot only when that step runs, and steps run in order. So another copy may
reuse a slot at once, but an I/O thread only after the last step that touches it has been committed.
Invariant, checked by `check()`: each slot is free once or has one entry; an entry that somebody holds, that an I/O
thread reads or that is still being filled is not given up.

    save (copy in a step) or fetch (I/O thread) ─► FILLED ─► loaded into blocks, any number of times ─► given up
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from headrace.kv.worth import Shelf, Worth


@dataclass(slots=True, kw_only=True)
class Entry(Worth):
    """One block in host memory."""

    slot: int
    is_filled: bool  # False while an I/O thread fills it
    num_holders: int = 0  # sequences that will want it
    num_readers: int = 0  # I/O threads that read it
    is_stored: bool = False  # sent to the places below, or on the way


class HostSlots:
    """The entries of `num_slots` slots, by key."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_dropped = 0  # entries that were not taken in, or given up without a copy below
        self.num_held = 0
        self._free = deque(range(num_slots))
        self._fences = [0] * num_slots  # the count of committed steps from which I/O may touch a slot
        self._num_planned = 0
        self._num_committed = 0
        self._shelf: Shelf[Entry] = Shelf()

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._shelf)

    def __contains__(self, key: bytes) -> bool:
        return key in self._shelf

    @property
    def is_crowded(self) -> bool:
        """Say whether more than half of the slots are taken."""
        return 2 * len(self._free) < self.num_slots

    def get(self, key: bytes) -> Entry | None:
        """Return an entry without counting a use."""
        return self._shelf.get(key)

    def is_filled(self, key: bytes) -> bool:
        """Say whether a block is in host memory, all of it."""
        entry = self._shelf.get(key)
        return entry is not None and entry.is_filled

    def use(self, key: bytes, now: float) -> Entry:
        """Count a use of an entry by a copy in the step being planned; return it."""
        entry = self._shelf.use(key, now)
        self.touch(entry)
        return entry

    def take(self, key: bytes, saves_s: float, now: float, *, by_io: bool, num_uses: int = 0) -> Entry | None:
        """Make an entry in a free slot, giving up what is worth less; None if there is no such room.

        by_io  an I/O thread fills it: only slots that no step in flight touches
        """
        entry = Entry(saves_s=saves_s, used_s=now, num_uses=num_uses, slot=-1, is_filled=not by_io)
        slot = self._free_slot(by_io)
        if slot is None and self._give_up(entry.at(now), now):
            slot = self._free_slot(by_io)
        if slot is None:
            self.num_dropped += 1
            return None
        entry.slot = slot
        self._shelf.put(key, entry)
        if not by_io:
            self.touch(entry)
        return entry

    def drop(self, key: bytes) -> None:
        """Free an entry's slot."""
        entry = self._shelf.pop(key)
        if entry is not None:
            self.num_held -= entry.num_holders
            self._free.append(entry.slot)

    def hold(self, entry: Entry) -> None:
        """Keep an entry until it is released."""
        entry.num_holders += 1
        self.num_held += 1

    def release(self, key: bytes) -> None:
        """Take one `hold` back; nothing happens if the entry is gone."""
        entry = self._shelf.get(key)
        if entry is not None and entry.num_holders:
            entry.num_holders -= 1
            self.num_held -= 1

    def touch(self, entry: Entry) -> None:
        """Note that the step being planned copies to or from an entry's slot."""
        self._fences[entry.slot] = self._num_planned + 1

    def is_settled(self, entry: Entry) -> bool:
        """Say whether no step in flight touches an entry's slot."""
        return self._fences[entry.slot] <= self._num_committed

    def note_planned(self) -> None:
        """A step has been made: what was touched since the last one is its."""
        self._num_planned += 1

    def note_committed(self) -> None:
        """The oldest step in flight has run."""
        self._num_committed += 1

    def settle(self) -> None:
        """All steps have run, or never will."""
        self._num_committed = self._num_planned

    def longest_unused(self, count: int) -> list[bytes]:
        """List the keys that were used longest ago."""
        return [key for key, _ in zip(self._shelf, range(count), strict=False)]

    def _free_slot(self, by_io: bool) -> int | None:
        for _ in range(len(self._free) if by_io else min(len(self._free), 1)):
            slot = self._free.popleft()
            if not by_io or self._fences[slot] <= self._num_committed:
                return slot
            self._free.append(slot)
        return None

    def _give_up(self, worth: float, now: float) -> bool:
        """Free the slot of the entry worth least, if that is not more than `worth`."""
        least = self._shelf.least(now, _is_free)
        entry = None if least is None else self._shelf.get(least)
        if least is None or entry is None or entry.at(now) > worth:
            return False
        if not entry.is_stored:
            self.num_dropped += 1
        self.drop(least)
        return True

    def check(self) -> None:
        """Raise AssertionError unless every slot is free once or has one entry."""
        entries = [entry for key in self._shelf if (entry := self._shelf.get(key)) is not None]
        slots = sorted([*self._free, *(entry.slot for entry in entries)])
        assert slots == list(range(self.num_slots)), "a host slot is lost, or in two places"
        assert self.num_held == sum(entry.num_holders for entry in entries), "holders are counted wrong"


def _is_free(entry: Entry) -> bool:
    return not entry.num_holders and not entry.num_readers and entry.is_filled
