"""Who reads what an op wrote: which slots go on behind a cut, and which are read by fp8 products alone.

Pure. Called by `executor.cuda.model`, once for each model.
Invariant: a slot counts as rounded between a write and the reads of it only if every one of them can take it so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.model.program import Embed, Head, Linear, Norm, Op


def read_before_written(ops: Sequence[Op]) -> frozenset[str]:
    """Name the slots whose numbers these ops take over from what was run before them."""
    read: set[str] = set()
    written: set[str] = set()
    for op in ops:
        read |= _read(op) - written
        if not isinstance(op, Head):
            written.add(op.dst)
    return frozenset(read)


def rounded_ops(
    ops: Sequence[Op], takes: Callable[[Linear], bool], *, cut: int
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the ops that may write rounded tokens, and those that then read them, by their places.

    takes  says whether a product multiplies with rounded tokens
    cut    the last op before which a slot's tokens are others than behind it: what is written before is read before
    """
    writes: set[int] = set()
    reads: set[int] = set()
    for at, op in enumerate(ops):
        is_writer = (isinstance(op, Norm) and not op.add) or (isinstance(op, Linear) and op.epilogue == "glu")
        if not is_writer or isinstance(op, Embed | Head):
            continue
        readers = _readers(ops, at, op.dst)
        found = [ops[place] for place in readers]
        if not readers or (at <= cut < readers[-1]):
            continue
        if all(isinstance(reader, Linear) and reader.dst != op.dst and takes(reader) for reader in found):
            writes.add(at)
            reads.update(readers)
    return frozenset(writes), frozenset(reads)


def normed_sums(ops: Sequence[Op], *, cut: int) -> frozenset[int]:
    """Return the places of norms of a sum right behind the product that was added to it, read by products alone.

    cut  as `rounded_ops` has it
    """
    alone, _ = rounded_ops(ops, lambda op: True, cut=cut)
    found = set()
    for at in alone:
        norm, before = ops[at], ops[at - 1] if at else None
        if (
            isinstance(norm, Norm)
            and isinstance(before, Linear)
            and before.epilogue == "add"
            and before.dst == norm.src
        ):
            found.add(at)
    return frozenset(found)


def ends_with_normed_sum(ops: Sequence[Op]) -> bool:
    """Say whether the last ops are a product that is added to a sum, the sum's norm, and a head that reads that."""
    match ops[-3:]:
        case (Linear(epilogue="add") as product, Norm(add=False) as norm, Head() as head):
            return product.dst == norm.src and norm.dst == head.src
    return False


def _readers(ops: Sequence[Op], at: int, slot: str) -> list[int]:
    """Return the places of the ops that read what the one at `at` wrote to a slot."""
    found = []
    for place in range(at + 1, len(ops)):
        op = ops[place]
        if slot in _read(op):
            found.append(place)
        elif not isinstance(op, Head) and op.dst == slot:
            break
    return found


def _read(op: Op) -> set[str]:
    """Name the slots that an op reads; a sum is read before it is written."""
    if isinstance(op, Embed):
        return set()
    is_added = (isinstance(op, Norm) and op.add) or (isinstance(op, Linear) and op.epilogue == "add")
    return {op.src, op.dst} if is_added and not isinstance(op, Head) else {op.src}
