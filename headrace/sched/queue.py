"""The waiting queue and its order: who is looked at first when a step has room.

Owns: the sequences that have been submitted and hold no blocks. Called by the scheduler alone, on the engine thread;
its counts may be read from other threads.

    interactive ─┬─ priority -1 ─┬─ preempted ones, the last to go first
                 ├─ priority 0   ├─ tenant a ─ by due time, minus the prefix bonus
                 └─ …            └─ tenant b ─ …
    background  ───────────────────  the same inside; looked at only when no interactive sequence waits

Order: the class (priority, lower first), then among the tenants that are not too far ahead of the neediest (`fairness`)
the earliest due, then need. A sequence is due at its deadline, and `_PATIENCE_S` after its arrival at the latest. One
that finds all its prompt in the prefix cache counts as due `_PREFIX_BONUS_S` earlier, one that finds half of it as half
of that: cached prefixes are used before they are evicted.
Nobody starves: a class that is passed over rises by one priority each `aging_s` seconds and is then served once; a
tenant that is passed over becomes the neediest; inside a tenant only what is due earlier goes first.
Source: earliest deadline first, Liu and Layland 1973, inside the fair shares of `sched.fairness`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from heapq import nsmallest
from itertools import islice
from typing import NamedTuple

from headrace.core.request import SeqId
from headrace.sched.fairness import Account, FairShares
from headrace.sched.outlook import Ahead
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.sequence import Sequence, SequenceStatus, Urgency

_PATIENCE_S = 60.0
_PREFIX_BONUS_S = 1.0
_WINDOW = 32  # waiting sequences of a class that are looked at for a step
_MOST_TENANTS = 16  # and tenants: the neediest
_Dated = tuple[float, SeqId, Sequence]


class Crowd(NamedTuple):
    """Who waits before a sequence that is to come, or beside it.

    num_sequences, num_tokens  all that wait in its half of the queue: interactive or background
    num_own                    of these, its tenant's sequences
    ahead                      what is likely to go before it
    """

    num_sequences: int
    num_tokens: int
    num_own: int
    ahead: Ahead


class _Line:
    """One tenant's sequences in one class, by due time. Those without a deadline come in order by themselves."""

    __slots__ = ("_dated", "_plain", "account", "num_tokens")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.num_tokens = 0
        self._plain: OrderedDict[SeqId, Sequence] = OrderedDict()
        self._dated: list[_Dated] = []

    def __len__(self) -> int:
        return len(self._plain) + len(self._dated)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._plain.values()
        yield from (sequence for _, _, sequence in self._dated)

    def push(self, sequence: Sequence) -> None:
        self.num_tokens += len(sequence.tokens)
        if sequence.deadline_s is None:
            self._plain[sequence.seq_id] = sequence
        else:
            insort(self._dated, (due_s(sequence), sequence.seq_id, sequence))

    def remove(self, sequence: Sequence) -> None:
        self.num_tokens -= len(sequence.tokens)
        if sequence.deadline_s is None:
            del self._plain[sequence.seq_id]
        else:
            place = bisect_left(self._dated, (due_s(sequence), sequence.seq_id), key=lambda entry: entry[:2])
            del self._dated[place]

    def first(self, most: int) -> list[Sequence]:
        """Return the first sequences of both kinds, at most `most` of each."""
        return [*islice(self._plain.values(), most), *(sequence for _, _, sequence in self._dated[:most])]


class _Class:
    """The sequences of one priority. Counted as they come and go: whoever asks at the door holds up the engine."""

    def __init__(self, now: float) -> None:
        self.served_s = now  # the last admission, or the end of emptiness
        self.returned: OrderedDict[SeqId, Sequence] = OrderedDict()
        self.lines: dict[str, _Line] = {}
        self.num_tokens = 0  # of those that have not been admitted before
        self._num_in_lines = 0
        self._weight = 0.0  # of all tenants that have a line

    def __len__(self) -> int:
        return len(self.returned) + self._num_in_lines

    def push(self, sequence: Sequence) -> None:
        """Put a new sequence into its tenant's line."""
        account = sequence.account
        line = self.lines.get(account.tenant)
        if line is None:
            line = self.lines[account.tenant] = _Line(account)
            self._weight += account.weight
        line.push(sequence)
        self._num_in_lines += 1
        self.num_tokens += len(sequence.tokens)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        if self.returned.pop(sequence.seq_id, None) is not None:
            return
        account = sequence.account
        line = self.lines[account.tenant]
        line.remove(sequence)
        self._num_in_lines -= 1
        self.num_tokens -= len(sequence.tokens)
        if not line:
            del self.lines[account.tenant]
            self._weight = self._weight - account.weight if self.lines else 0.0

    def ahead_of(self, tenant: str, weight: float) -> Ahead:
        """Return what of this class goes before a tenant's next sequence: its fair part of all, and its own."""
        own = self.lines.get(tenant)
        total = Ahead(len(self), self.num_tokens)
        if len(self.lines) + (own is None) <= 1:
            return total
        own_length, own_tokens, others = 0, 0, self._weight
        if own is not None:
            own_length, own_tokens, others = len(own), own.num_tokens, self._weight - own.account.weight
        turns = max(others, 0.0) / weight  # of others for each of its own
        return Ahead(
            min(total.num_sequences, len(self.returned) + own_length + int(turns * (own_length + 1))),
            min(
                total.num_tokens, own_tokens + int(turns * (own_tokens + total.num_tokens / (total.num_sequences or 1)))
            ),
        )

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.returned.values()
        for line in self.lines.values():
            yield from line


class WaitingQueue:
    """Waiting sequences by class, tenant and due time.

    aging_s  seconds in which a class that is passed over rises by one priority
    """

    def __init__(self, prefixes: PrefixSharing | None, block_size: int, shares: FairShares, aging_s: float) -> None:
        self._prefixes = prefixes
        self._size = block_size
        self._shares = shares
        self._aging_s = aging_s
        self._interactive: dict[int, _Class] = {}
        self._background: dict[int, _Class] = {}
        self.num_interactive = 0
        self.num_background = 0
        self._now = 0.0  # the last time that was told

    def __len__(self) -> int:
        """Count the waiting sequences."""
        return self.num_interactive + self.num_background

    def __iter__(self) -> Iterator[Sequence]:
        for classes in (self._interactive, self._background):
            for each in classes.values():
                yield from each

    def push(self, sequence: Sequence, now: float) -> None:
        """Put a new sequence where its class, tenant and due time say."""
        self._now = now
        self._class_of(sequence).push(sequence)
        self._count(sequence, 1)

    def put_back(self, sequence: Sequence) -> None:
        """Put a preempted sequence at the head of its class."""
        returned = self._class_of(sequence).returned
        returned[sequence.seq_id] = sequence
        returned.move_to_end(sequence.seq_id, last=False)
        self._count(sequence, 1)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        classes = self._background if sequence.is_background else self._interactive
        group = classes[sequence.priority]
        group.remove(sequence)
        if not (group.returned or group.lines):
            del classes[sequence.priority]
        self._count(sequence, -1)

    def crowd(self, who: Urgency | Sequence, weight: float) -> Crowd:
        """Return who waits before somebody who has not come yet, and beside; any thread.

        weight  its tenant's
        """
        half = list((self._background if who.is_background else self._interactive).items())
        sequences = tokens = own = 0
        ahead = Ahead(0, 0)
        if who.is_background:
            above = list(self._interactive.values())
            ahead = Ahead(self.num_interactive, sum(group.num_tokens for group in above))
        for priority, group in half:
            sequences += len(group)
            tokens += group.num_tokens
            line = group.lines.get(who.tenant)
            own += 0 if line is None else len(line)
            if priority < who.priority:
                ahead = Ahead(ahead.num_sequences + len(group), ahead.num_tokens + group.num_tokens)
            elif priority == who.priority:
                part = group.ahead_of(who.tenant, weight)
                ahead = Ahead(ahead.num_sequences + part.num_sequences, ahead.num_tokens + part.num_tokens)
        return Crowd(sequences, tokens, own, ahead)

    def candidates(self, now: float, *, background: bool = False) -> Iterator[Sequence]:
        """Yield waiting sequences in the order of admission.

        The caller may take the one that it has just been given out of the queue, and charge its tenant, before it
        asks for the next; one that it leaves where it is does not come again.
        """
        self._now = now
        classes = self._background if background else self._interactive
        heads = {priority: self._in_order(group) for priority, group in classes.items()}
        while heads:
            priority = min(heads, key=lambda p: (p - (now - classes[p].served_s) / self._aging_s, p))
            group = classes[priority]
            sequence = next(heads[priority], None)
            if sequence is None:
                del heads[priority]
                continue
            yield sequence
            if sequence.status is SequenceStatus.RUNNING:
                group.served_s = now
                if priority not in classes:
                    del heads[priority]

    def _in_order(self, group: _Class) -> Iterator[Sequence]:
        """Yield the first sequences of a class: those that were preempted, then tenant by tenant."""
        yield from list(group.returned.values())
        if len(group.lines) <= 1:
            for line in list(group.lines.values()):
                yield from self._ranked(line, _WINDOW)
            return
        tenants = nsmallest(_MOST_TENANTS, group.lines.items(), key=lambda item: item[1].account.served)
        most = max(_WINDOW // len(tenants), 2)
        fronts = [self._ranked(line, most)[::-1] for _, line in tenants]
        burst = self._shares.burst
        while fronts:
            least = min(front[-1].account.served for front in fronts)
            best = min(
                (front for front in fronts if front[-1].account.served - least < burst),
                key=lambda front: (front[-1].rank, front[-1].account.served),
            )
            yield best.pop()
            if not best:
                fronts.remove(best)

    def _ranked(self, line: _Line, most: int) -> list[Sequence]:
        """Return the first of a tenant's sequences, best first."""
        window = line.first(most)
        for sequence in window:
            sequence.rank = due_s(sequence) - self._bonus_s(sequence)
        window.sort(key=lambda sequence: sequence.rank)
        return window

    def _bonus_s(self, sequence: Sequence) -> float:
        if self._prefixes is None:
            return 0.0
        return _PREFIX_BONUS_S * self._prefixes.find(sequence) * self._size / len(sequence.tokens)

    def _class_of(self, sequence: Sequence) -> _Class:
        classes = self._background if sequence.is_background else self._interactive
        group = classes.get(sequence.priority)
        if group is None:
            group = classes[sequence.priority] = _Class(self._now)
        return group

    def _count(self, sequence: Sequence, change: int) -> None:
        if sequence.is_background:
            self.num_background += change
        else:
            self.num_interactive += change

    def check(self) -> None:
        """Raise AssertionError unless everybody here waits, holds nothing and stands in the right place."""
        for background, classes in ((False, self._interactive), (True, self._background)):
            count = self.num_background if background else self.num_interactive
            assert count == sum(map(len, classes.values())), "the queue miscounts"
            for priority, group in classes.items():
                assert len(group), "an empty class is kept"
                assert all(group.lines.values()), "an empty line is kept"
                assert len(group) == sum(1 for _ in group), "a class miscounts"
                assert group.num_tokens == sum(line.num_tokens for line in group.lines.values()), "its tokens, too"
                for line in group.lines.values():
                    assert line.num_tokens == sum(len(s.tokens) for s in line), "a line miscounts its tokens"
                for sequence in group:
                    assert (sequence.priority, sequence.is_background) == (priority, background), "a wrong class"
        for sequence in self:
            assert sequence.status is SequenceStatus.WAITING, "a waiting sequence has another status"
            assert not sequence.blocks, "a waiting sequence holds blocks"


def due_s(sequence: Sequence) -> float:
    """Return when a sequence is due: its deadline, but no later than one without a deadline."""
    patience_s = sequence.queued_s + _PATIENCE_S
    return patience_s if sequence.deadline_s is None else min(sequence.deadline_s, patience_s)
