"""The places below the pool, as one: host memory, and below it disk and Redis, met through `Places`.

Owns: which blocks are in host memory, what has been asked of the places, and the copies of the step being planned.
Called on the engine thread alone; places answer into a line that `poll` empties, so nothing here waits for I/O.

    block of the pool ─ evicted, or used again ─► host slot ─ used again, or soon to go ─► disk, Redis
    waiting sequence  ─► search: locate below ─► does loading beat computing? ─► fetch into host slots ─► ready
    admission         ─► load: host slot → block, in the step that first reads it

Invariants: a key names the same bytes wherever it is found; a search ends, by its answers or at its deadline, so no
sequence waits longer for the places below than computing would take, nor longer than `wait_s`; what is fetched for a
sequence is held until it has been admitted or is gone, at most half of the slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from headrace.core.protocols import Clock
from headrace.core.stats import TierStats
from headrace.core.step import BlockCopy, CopyKind
from headrace.kv.tiers.host_slots import Entry, HostSlots
from headrace.kv.tiers.keys import KeyChain
from headrace.kv.tiers.places import Learned, Places
from headrace.kv.tiers.recompute_cost import RecomputeCost, Unknown
from headrace.kv.transfer.mover import Drop, Fetch, Fetched, Locate, Located, Store, Stored

LONGEST_WAIT_S = 5.0
_LEAST_WAIT_S, _UNKNOWN_WAIT_S = 0.02, 1.0
_PATIENCE_S = 0.05
_MOST_CLEANED = 4  # entries that are sent below before they have to go, per step


@dataclass(slots=True, eq=False)
class Search:
    """What is being looked for below host memory for one sequence."""

    keys: tuple[bytes, ...]
    saves_s: tuple[float, ...]  # by block: seconds that computing it takes
    deadline_s: float
    began_s: float
    tickets: dict[int, int] = field(default_factory=dict)  # what is asked, and of which place
    found: dict[int, int] = field(default_factory=dict)  # by place: leading keys that it has
    held: list[bytes] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Say whether nothing is asked any more."""
        return not self.tickets


class Late(NamedTuple):
    """The places that a sequence has waited for in vain, and for how long."""

    places: tuple[str, ...]
    waited_s: float


class TierShape(msgspec.Struct, frozen=True):
    """What a hierarchy is made with: slots in memory, seconds a block's copy takes, the places' names, the wait."""

    num_slots: int
    copy_s: float
    places: tuple[str, ...]
    wait_s: float = LONGEST_WAIT_S


@dataclass(slots=True)
class _Fetching:
    keys: tuple[bytes, ...]
    searches: list[Search]  # that wait for it
    place: int


class TierHierarchy:
    """Host memory of `num_slots` slots and the places below it, nearest first.

    copy_s  seconds that one block takes between pool and host memory
    wait_s  seconds that a sequence waits for the places below, however long computing would take
    cost    what computing costs; None: what `weigh_against` says
    """

    def __init__(
        self,
        num_slots: int,
        block_bytes: int,
        chain: KeyChain,
        places: Places | None = None,
        *,
        copy_s: float = 0.0,
        wait_s: float = LONGEST_WAIT_S,
        cost: RecomputeCost | None = None,
    ) -> None:
        self.chain = chain
        self.cost: RecomputeCost = cost or Unknown()
        self._is_cost_given = cost is not None
        self.host = HostSlots(num_slots)
        self._places = Places() if places is None else places
        self._every_place = range(len(self._places.names))
        self._block_bytes = block_bytes
        self._copy_s = copy_s
        self._wait_s = wait_s
        self._copies: list[BlockCopy] = []
        self._searches: dict[int, Search] = {}
        self._fetches: dict[int, _Fetching] = {}
        self._filling: dict[bytes, int] = {}  # ticket of the fetch that brings a block
        self._to_store: deque[bytes] = deque()
        self._doomed: set[bytes] = set()  # forgotten, and still in the hands of an I/O thread
        self._next_ticket = 0
        self._ram = TierStats(name="ram")

    # --- blocks of the pool --------------------------------------------------------------------------------------

    @property
    def has_places_below(self) -> bool:
        """Say whether there is more than host memory."""
        return bool(self._every_place)

    @property
    def shape(self) -> TierShape:
        """Return what a hierarchy that decides the same is made with, the places' answers apart."""
        return TierShape(self.host.num_slots, self._copy_s, self._places.names, self._wait_s)

    def weigh_against(self, cost: RecomputeCost) -> None:
        """Weigh loading against what computing costs by `cost` from now on, unless a cost was given at the start."""
        if not self._is_cost_given:
            self.cost = cost

    def watch(self, note: Callable[[Learned], None] | None) -> None:
        """Have `note` told what is learned from the places from now on, in order; None: nobody."""
        self._places.watch(note)

    def save(self, key: bytes, block: int, saves_s: float, now: float, *, num_uses: int = 0) -> bool:
        """Copy a block to host memory in the step being planned, unless it is there; False if there is no room."""
        entry = self.host.get(key)
        if entry is None:
            entry = self.host.take(key, saves_s, now, by_io=False, num_uses=num_uses)
            if entry is None:
                return False
            self._copies.append(BlockCopy(CopyKind.SAVE, block, entry.slot))
            self._ram.num_stored += 1
            self._ram.written_bytes += self._block_bytes
        elif key in self._doomed:
            return False
        else:
            entry.num_uses = max(entry.num_uses, num_uses)
        if entry.num_uses:
            self._want_stored(key, entry)
        return True

    def forget(self, key: bytes) -> None:
        """Drop a block wherever it is: its numbers are not to be trusted."""
        entry = self.host.get(key)
        if entry is not None:
            if entry.num_readers or not entry.is_filled:
                self._doomed.add(key)
            else:
                self.host.drop(key)  # its slot is fenced, if a step in flight still reads it
        for place in self._every_place:
            self._places.ask(place, Drop(key))

    def num_ready(self, keys: Sequence[bytes]) -> int:
        """Count the leading keys whose blocks are in host memory."""
        count = 0
        for key in keys:
            entry = self.host.get(key)
            if entry is None or not entry.is_filled or key in self._doomed:
                break
            count += 1
        return count

    def load_pays(self, saves_s: float, num_blocks: int) -> bool:
        """Say whether copying blocks from host memory beats computing them; loads until the machine is known."""
        if not self.cost.is_known or self._copy_s * num_blocks < saves_s:
            return True
        self._ram.num_skipped += num_blocks
        return False

    def load(self, key: bytes, block: int, now: float) -> None:
        """Copy a block from host memory in the step being planned."""
        entry = self.host.use(key, now)
        self._copies.append(BlockCopy(CopyKind.LOAD, entry.slot, block))
        self._ram.num_hits += 1
        self._ram.read_bytes += self._block_bytes
        self._ram.load_s += self._copy_s
        self._want_stored(key, entry)

    def hold(self, key: bytes) -> bool:
        """Keep a block in host memory until it is released; False if it is not there."""
        entry = self.host.get(key)
        if entry is None or not entry.is_filled:
            return False
        self.host.hold(entry)
        return True

    def release(self, key: bytes) -> None:
        """Take a `hold` back."""
        self.host.release(key)

    def can_hold(self, num_blocks: int) -> bool:
        """Say whether so many more blocks may be held: at most half of the slots."""
        return 2 * (self.host.num_held + num_blocks) <= self.host.num_slots

    def swap_pays(self, saves_s: float, num_blocks: int) -> bool:
        """Say whether copying blocks to host memory and back beats computing them again."""
        return not self.cost.is_known or 2 * self._copy_s * num_blocks < saves_s

    def miss(self, num_blocks: int) -> None:
        """Count blocks that a sequence would have liked to find."""
        self._ram.num_misses += num_blocks

    # --- searches ------------------------------------------------------------------------------------------------

    def search(self, keys: Sequence[bytes], saves_s: Sequence[float], now: float) -> Search | None:
        """Look below for blocks that are not in host memory; None if nobody can be asked or it cannot pay."""
        total_s = sum(saves_s)
        asked = [place for place in self._every_place if self._places.is_up(place) and self._can_pay(place, total_s)]
        if not keys or not asked:
            return None
        wait_s = min(max(total_s, _LEAST_WAIT_S) if self.cost.is_known else _UNKNOWN_WAIT_S, self._wait_s)
        search = Search(tuple(keys), tuple(saves_s), now + wait_s, now)
        for place in asked:
            ticket = self._next_ticket = self._next_ticket + 1
            search.tickets[ticket] = place
            self._searches[ticket] = search
            self._places.ask(place, Locate(ticket, search.keys))
        return search

    def is_pending(self, search: Search, now: float) -> bool:
        """Say whether a sequence should go on waiting for its search."""
        return not search.is_over and now < search.deadline_s

    def give_up(self, search: Search, now: float) -> Late | None:
        """Count the places that have not answered in time; None if all have. The caller goes on without them."""
        if search.is_over:
            return None
        late = sorted(set(search.tickets.values()))
        for place in late:
            self._places.note_late(place)
        return Late(tuple(self._places.names[place] for place in late), now - search.began_s)

    def end(self, search: Search) -> None:
        """Release what is held for a search, and ask no more in its name. What is on its way still arrives."""
        for ticket in search.tickets:
            self._searches.pop(ticket, None)
            if ticket in self._fetches:
                self._fetches[ticket].searches.remove(search)
        search.tickets.clear()
        for key in search.held:
            self.host.release(key)
        search.held.clear()

    def poll(self, now: float) -> None:
        """Take in what the places have answered."""
        while (arrived := self._places.take_result()) is not None:
            place, result = arrived
            match result:
                case Located():
                    self._located(place, result, now)
                case Fetched():
                    self._fetched(result)
                case Stored():
                    self._stored(result)

    # --- steps ---------------------------------------------------------------------------------------------------

    @property
    def has_copies(self) -> bool:
        """Say whether the step being planned has copies."""
        return bool(self._copies)

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Return the copies of the step that is made now. Called once per step."""
        self.host.note_planned()
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    def note_committed(self) -> None:
        """A step has run: what it saved can be sent below. Called once per step, in order."""
        self.host.note_committed()
        if self._every_place:
            if self.host.is_crowded:
                self._clean()
            self._send_below()

    def stats(self) -> tuple[TierStats, ...]:
        """Return the counts of each place, nearest first. Any thread."""
        ram = self._ram
        ram.num_dropped = self.host.num_dropped
        ram.stored_bytes = len(self.host) * self._block_bytes
        return (ram, *self._places.stats())

    def start(self, on_result: Callable[[], None]) -> None:
        """Start the places' threads; `on_result` is called on them when there is something to `poll`."""
        self._places.start(on_result)

    def stop(self, clock: Clock, timeout_s: float) -> None:
        """Send below what is still to be sent, for at most `timeout_s` seconds, and end the places. Idempotent."""
        self.host.settle()
        until = clock.now() + timeout_s
        while self._to_store and (left_s := until - clock.now()) > 0:
            self._send_below(is_patient=True)
            if self._to_store:
                self._places.wait(min(left_s, _PATIENCE_S))
            self.poll(clock.now())
        self._places.stop(clock, until)

    def check(self) -> None:
        """Raise AssertionError unless slots, searches and fetches agree."""
        self.host.check()
        for ticket, search in self._searches.items():
            assert ticket in search.tickets, "a search does not know its ticket"
        for ticket, fetching in self._fetches.items():
            assert all(self._filling.get(key) == ticket for key in fetching.keys), "a block is fetched twice"
            assert all(ticket in search.tickets for search in fetching.searches), "a fetch is waited for by nobody"
            assert all(not self.host.is_filled(key) for key in fetching.keys), "a block being fetched is in use"

    # --- inside --------------------------------------------------------------------------------------------------

    def _can_pay(self, place: int, saves_s: float) -> bool:
        return not self.cost.is_known or self._places.fetch_s(place, 1) < saves_s

    def _located(self, place: int, result: Located, now: float) -> None:
        search = self._searches.pop(result.ticket, None)
        if search is None:
            return
        del search.tickets[result.ticket]
        search.found[place] = result.num_blocks
        if search.is_over:
            self._fetch(search, now)

    def _fetch(self, search: Search, now: float) -> None:
        """Everybody has answered: fetch from the nearest place what it has, from the next what it has beyond that."""
        first = 0
        for place in self._every_place:
            count = search.found.get(place, 0)
            if count <= first:
                continue
            saves_s = sum(search.saves_s[first:count])
            if self.cost.is_known and self._places.fetch_s(place, count - first) >= saves_s:
                self._places.skip(place, count - first)
                continue
            keys, slots = self._take_slots(search, first, count, now)
            if keys:
                ticket = self._next_ticket = self._next_ticket + 1
                search.tickets[ticket] = place
                self._fetches[ticket] = _Fetching(tuple(keys), [search], place)
                self._filling.update(dict.fromkeys(keys, ticket))
                self._places.ask(place, Fetch(ticket, tuple(keys), tuple(slots)))
            first = count

    def _take_slots(self, search: Search, first: int, last: int, now: float) -> tuple[list[bytes], list[int]]:
        """Make entries to be filled, as many as there is room for; what another search fetches is waited for too."""
        keys: list[bytes] = []
        slots: list[int] = []
        for index in range(first, last):
            key = search.keys[index]
            if key in self._filling:
                ticket = self._filling[key]
                if ticket not in search.tickets:
                    search.tickets[ticket] = self._fetches[ticket].place
                    self._fetches[ticket].searches.append(search)
                continue
            if key in self.host:
                continue
            if 2 * (self.host.num_held + len(self._filling) + len(keys)) >= self.host.num_slots:
                break
            entry = self.host.take(key, search.saves_s[index], now, by_io=True)
            if entry is None:
                break
            entry.is_stored = True
            keys.append(key)
            slots.append(entry.slot)
        return keys, slots

    def _fetched(self, result: Fetched) -> None:
        """Show what has arrived, and hold it for those that wait for it."""
        fetching = self._fetches.pop(result.ticket)
        for index, key in enumerate(fetching.keys):
            del self._filling[key]
            entry = self.host.get(key)
            assert entry is not None, "an entry was given up while it was being filled"
            entry.is_filled = True
            if index >= result.num_blocks:
                self.host.drop(key)
                self._doomed.discard(key)
                continue
            for search in fetching.searches:
                self.host.hold(entry)
                search.held.append(key)
            self._bury(key)
        for search in fetching.searches:
            del search.tickets[result.ticket]

    def _stored(self, result: Stored) -> None:
        entry = self.host.get(result.key)
        assert entry is not None, "an entry was given up while it was being read"
        entry.num_readers -= 1
        self._bury(result.key)

    def _bury(self, key: bytes) -> None:
        """Drop an entry that was forgotten, once no I/O thread has it."""
        entry = self.host.get(key)
        if key in self._doomed and (entry is None or (entry.is_filled and not entry.num_readers)):
            self._doomed.discard(key)
            self.host.drop(key)

    def _want_stored(self, key: bytes, entry: Entry) -> None:
        """Have an entry sent below, once."""
        if self._every_place and entry.is_filled and not entry.is_stored:
            entry.is_stored = True
            self._to_store.append(key)

    def _clean(self) -> None:
        """Send what is next to go below, so that giving it up costs nothing."""
        for key in self.host.longest_unused(_MOST_CLEANED):
            entry = self.host.get(key)
            if entry is not None:
                self._want_stored(key, entry)

    def _send_below(self, *, is_patient: bool = False) -> None:
        """Hand the places what has reached its slot. `is_patient`: rather later than not at all."""
        places = self._places
        for _ in range(len(self._to_store)):
            key = self._to_store.popleft()
            entry = self.host.get(key)
            if entry is None:
                continue
            is_late = is_patient and not all(
                places.has_room(place) or not places.is_up(place) for place in self._every_place
            )
            if is_late or not self.host.is_settled(entry):
                self._to_store.append(key)
                continue
            for place in self._every_place:
                if places.is_up(place) and places.store(place, Store(key, entry.slot, entry.saves_s)):
                    entry.num_readers += 1
