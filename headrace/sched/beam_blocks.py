"""The blocks of beams: a reserve taken at admission, sharing of what beams have in common, one copy per fork.

Owns: the reserve of each group of beams that runs, and the copies that the next step has to make. Called by the
scheduler, whose sequences it changes in its place.
Invariant: the reserve holds what every beam may still want, Σ (blocks at the greatest length - blocks now). Beams are
therefore never preempted and never wait for a block: a search that has begun can end, whoever else runs.

    beam 0:  [prompt][prompt][a b c]  ──fork──►  beam 1:  [prompt][prompt][a b c]
                 shared: one more holder                          its own block; the bytes are copied, then both differ

All beams of a group have the same length, so a beam that takes another's place has a last block of its own already,
unless the length ends with a block: then there is nothing to copy.
Source: copy-on-write of the last block as in PagedAttention, Kwon et al. 2023, §4.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.core.step import BlockCopy, CopyKind
from headrace.kv import BlockPool
from headrace.sched.beams import BeamGroup
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.sequence import Sequence, SequenceStatus
from headrace.sched.tables import BlockTables


class BeamBlocks:
    """Moves blocks between the beams of a group."""

    def __init__(self, pool: BlockPool, block_size: int, tables: BlockTables, prefixes: PrefixSharing | None) -> None:
        self._pool = pool
        self._size = block_size
        self._tables = tables
        self._prefixes = prefixes
        self._copies: list[BlockCopy] = []

    def num_wanted(self, leader: Sequence, max_len: int) -> int:
        """Return how many blocks a group of beams up to `max_len` tokens long may come to hold."""
        most, num_common = -(-max_len // self._size), leader.prompt_len // self._size
        return num_common + leader.num_beams * (most - num_common)

    def num_reserved(self, leader: Sequence) -> int:
        """Return how many of them are not the prompt's."""
        return self.num_wanted(leader, leader.max_len) - -(-leader.prompt_len // self._size)

    def enter(self, group: BeamGroup) -> None:
        """Take the reserve, which is free, for a group whose leader has been admitted."""
        leader = group.members[0]
        reserve = self._pool.allocate(self.num_reserved(leader))
        assert reserve is not None
        group.reserve = reserve
        for member in group.members[1:]:
            member.status = SequenceStatus.RUNNING
            member.first_scheduled_s = leader.first_scheduled_s
            if self._prefixes is not None:
                self._prefixes.stand_by(member)

    def grow(self, sequence: Sequence) -> None:
        """Give a beam one more block out of its group's reserve."""
        assert sequence.beams is not None
        self._tables.assign(sequence, [sequence.beams.reserve.pop()])

    def fork(self, child: Sequence, parent: Sequence, token_id: int) -> None:
        """Let `child` go on from where `parent` is, with `token_id`; what it was itself is forgotten."""
        assert child.beams is not None
        num_full, has_part = divmod(parent.num_computed, self._size)
        old = child.blocks
        own: list[int] = []
        if has_part:
            own = [old.pop() if old else child.beams.reserve.pop()]
            self._copies.append(BlockCopy(CopyKind.DUPLICATE, parent.blocks[num_full], own[0]))
        shared = parent.blocks[:num_full]
        self._pool.share(shared)
        self._pool.free(old)
        child.blocks = []
        self._tables.assign(child, shared + own)
        child.tokens = [*parent.tokens, token_id]
        # What the parent computed is not charged to the child again.
        child.num_cached += parent.num_computed - child.peak_computed
        child.num_computed = child.peak_computed = parent.num_computed
        if self._prefixes is not None:
            self._prefixes.follow(child, parent)

    def leave(self, group: BeamGroup) -> None:
        """Give the reserve back."""
        self._pool.free(group.reserve)
        group.reserve = []

    def check(self, groups: Iterable[BeamGroup]) -> None:
        """Raise AssertionError if a beam could want a block that is not reserved."""
        for group in groups:
            most = -(-group.members[0].max_len // self._size)
            num_wanted = sum(
                most - (len(m.blocks) if m.tokens else group.members[0].prompt_len // self._size) for m in group.members
            )
            assert num_wanted <= len(group.reserve), "beams may want more than is reserved"

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Return the copies that the next step has to make before anything else."""
        copies = tuple(self._copies)
        self._copies.clear()
        return copies
