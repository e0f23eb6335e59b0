"""`DeviceModel`: a Program on the device: its weights, its slots, its KV pool, and the ops in order.

Owns every device buffer of a model. Called by `executor.cuda.executor`; the kernels are in `ops.cuda`.
Invariant: nothing here reads a number back from the device, so a run can be recorded as a graph; slots are made once,
for the longest step, and a run uses their first rows.
The pool has one block more than the scheduler knows: padded tokens write there. A block's layers lie behind each other,
so that a block is copied as one piece; in int8 a head's scales lie behind its numbers.
Behind the last attention a token's numbers meet no other's: from there on only tokens that somebody asks about go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import torch

from headrace.executor.cuda import forms
from headrace.executor.cuda.readers import ends_with_normed_sum, normed_sums, read_before_written, rounded_ops
from headrace.model.program import Attention, Embed, Head, Linear, Norm, Program, QkWrite
from headrace.ops.cuda.attention import LEAST_PART, Scoring, Tiles, TokenReach, attention, tile_size
from headrace.ops.cuda.attention_single import single_attention
from headrace.ops.cuda.e4m3 import MOST_NUMBERS, Rounded, multiplies_e4m3, room_in
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.linear import Squares, few_tokens, linear
from headrace.ops.cuda.long_products import long_linear, takes_rounded
from headrace.ops.cuda.norm import Following, rms_norm, rms_norm_add
from headrace.ops.cuda.rope import Rotation, qk_write
from headrace.ops.cuda.rows import gather_rows
from headrace.ops.cuda.weights import Weight

_INVARIANT_PARTS = 8
_MOST_PARTS = 32
_WANTED_PROGRAMS = 264  # two per multiprocessor of an H200; three find room, and one and a half keep the memory busy
_HEAD_NORM_TOKENS = 8  # all of the head's programs read the squares: of many tokens that outweighs a launch
_TILES_AT_ONCE = 512  # tiles whose parts are in scratch memory at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """A packed step on the device; see `executor.cuda.device_batch`. Tiles are [3, n]: line, first token, count.

    reach  [2, T] int32 window and sinks of each token; None: all see everything
    kept   [R] int32 the tokens whose hidden state is wanted; None: all of them
    is_single  every token is the only one of its row
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    tables: torch.Tensor
    short: torch.Tensor
    long: Mapping[int, torch.Tensor]
    reach: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    is_single: bool = False


class _LayerCache(NamedTuple):
    """Views of the pool: values [blocks, 2, Nkv, S, D]; int8 has scales [blocks, 2, Nkv, S] bf16."""

    values: torch.Tensor
    scales: torch.Tensor | None


class DeviceModel:
    """Runs a Program. `dtype` is that of activations and, unless that is int8, of the KV cache; the residual stream is
    fp32."""

    def __init__(
        self,
        program: Program,
        matrices: Mapping[str, Weight],
        vectors: Mapping[str, torch.Tensor],
        *,
        num_blocks: int,
        block_size: int,
        max_tokens: int,
        max_lines: int,
        dtype: torch.dtype,
        device: torch.device,
        is_invariant: bool,
        has_int8_kv: bool = False,
    ) -> None:
        """Allocate slots for steps of `max_tokens`, logits of `max_lines`, and the pool."""
        head = program.ops[-1]
        if not isinstance(head, Head):
            raise ValueError(f"the program ends with {type(head).__name__}; an executor samples from a Head")
        self._ops = program.ops[:-1]
        self._head = head
        self._matrices = matrices
        self._vectors = vectors
        self._is_invariant = is_invariant
        needed = -(-program.max_positions // LEAST_PART)
        self._most_parts = min(_MOST_PARTS, 1 << (needed - 1).bit_length())
        self._inv_freqs = [torch.tensor(rope.inv_freq, dtype=torch.float32, device=device) for rope in program.ropes]
        self._rope_scales = [rope.scale for rope in program.ropes]
        self._slots = {
            name: torch.zeros((max_tokens, width), dtype=torch.float32 if name == "x" else dtype, device=device)
            for name, width in program.slot_widths().items()
        }
        self._logits = torch.zeros((max_lines, self.vocab_size), dtype=torch.float32, device=device)
        layers = [op for op in self._ops if isinstance(op, Attention)]
        self._turned = torch.zeros(
            max_tokens * max(op.num_heads * op.head_dim for op in layers), dtype=dtype, device=device
        )
        self._last_attention = max(i for i, op in enumerate(self._ops) if isinstance(op, Attention))
        self._read_later = read_before_written((*self._ops[self._last_attention + 1 :], head))
        # All products of a step are of few tokens or none is: what one leaves to the next, that one has to take up.
        products = [matrices[op.weight] for op in self._ops if isinstance(op, Linear)]
        self._few_tokens = max_tokens if is_invariant else min(few_tokens(weight, dtype) for weight in products)
        self._rounds: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
        if multiplies_e4m3(self._turned) and not is_invariant:
            self._rounds = rounded_ops((*self._ops, head), self._takes_rounded, cut=self._last_attention)
        # Norms between two products of few tokens, which take them over: a half each.
        self._spread: frozenset[int] = frozenset()
        if dtype != torch.float16:  # which holds no numbers as large as those of a sum that is not normed yet
            self._spread = normed_sums((*self._ops, head), cut=self._last_attention)
        # The last norm: the head takes it over where it multiplies few tokens, and all that went through it.
        self._last_norm = len(self._ops) - 1 if ends_with_normed_sum(program.ops) and dtype != torch.float16 else None
        self._is_whole = False
        self._squares: dict[str, Squares] = {}  # by slots whose norm is not done yet
        self._rooms = {self._slot_of(at): room_in(self._slots[self._slot_of(at)]) for at in self._rounds[0]}
        itemsize = 1 if has_int8_kv else self._turned.element_size()
        sizes = [
            forms.layer_block_bytes(layer, block_size=block_size, itemsize=itemsize) for layer in program.cache_layers
        ]
        self.block_bytes = sum(sizes)
        self.pool = torch.zeros((num_blocks + 1, self.block_bytes), dtype=torch.uint8, device=device)
        self._layers: list[_LayerCache] = []
        first = 0
        for layer, size in zip(program.cache_layers, sizes, strict=True):
            held = self.pool[:, first : first + size].view(num_blocks + 1, 2, layer.kv_heads, -1)
            shape = (block_size, layer.head_dim)
            if has_int8_kv:
                count = block_size * layer.head_dim
                values = held[..., :count].view(torch.int8).unflatten(-1, shape)
                self._layers.append(_LayerCache(values, held[..., count:].view(torch.bfloat16)))
            else:
                self._layers.append(_LayerCache(held.view(dtype).unflatten(-1, shape), None))
            first += size

    @property
    def vocab_size(self) -> int:
        """Tokens that the head knows."""
        return self._matrices[self._head.table].n

    def tile_sizes(self) -> tuple[int, ...]:
        """Return the sizes of long tiles that the layers want; none where every token is a tile of its own."""
        if self._is_invariant:
            return ()
        layers = [op for op in self._ops if isinstance(op, Attention)]
        return tuple(sorted({tile_size(op.num_heads // op.num_kv_heads, op.head_dim) for op in layers}))

    def run(self, batch: DeviceBatch, *, is_whole: bool = False) -> torch.Tensor:
        """Run every op but the head; return the head's input, [T, H], or [R, H] of those that are kept.

        is_whole  it goes to `logits` as it is, and nowhere else
        """
        self._is_whole = is_whole and not self._is_invariant
        tokens = len(batch.tokens)
        slots = {name: slot[:tokens] for name, slot in self._slots.items()}
        self._squares.clear()
        at = 0
        while at < len(self._ops):
            if at == self._last_attention + 1 and batch.kept is not None:
                if not len(batch.kept):
                    break
                self._keep(batch.kept.long(), slots)
            at += self._run(at, batch, slots)
        return slots[self._head.src]

    def _keep(self, kept: torch.Tensor, slots: dict[str, torch.Tensor]) -> None:
        """Bring the numbers of some tokens to the front of what is still read."""
        for name, slot in self._slots.items():
            slots[name] = slots[name][kept] if name in self._read_later else slot[: len(kept)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of rows of the head's input, [R, V] fp32, valid until the next call."""
        if len(hidden) > len(self._logits):
            raise ValueError(f"logits of {len(hidden)} lines; this model has room for {len(self._logits)}")
        table = self._matrices[self._head.table]
        out = self._logits[: len(hidden)]
        epilogue = Epilogue(scale=self._head.scale, softcap=self._head.softcap)
        squares = self._squares.get(self._head.src) if self._is_whole else None
        linear(hidden, table, out, epilogue=epilogue, is_invariant=self._is_invariant, squares=squares)
        return out

    def _run(self, at: int, batch: DeviceBatch, slots: dict[str, torch.Tensor]) -> int:
        """Run one op, or two in one kernel; return how many."""
        op = self._ops[at]
        if not isinstance(op, Linear | Head):
            self._squares.pop(op.dst, None)
        match op:
            case Embed():
                gather_rows(self._matrices[op.table], batch.tokens, slots[op.dst], scale=op.scale)
            case Norm():
                return self._norm(at, op, slots)
            case Linear():
                return self._linear(at, op, slots)
            case QkWrite():
                if self._attend_at_once(at, op, batch, slots):
                    return 2
                self._qk_write(op, batch, slots)
            case Attention():
                self._attention(op, batch, slots)
            case Head():
                raise ValueError("a Head may only end a program")
            case _:
                assert_never(op)
        return 1

    def _linear(self, at: int, op: Linear, slots: dict[str, torch.Tensor]) -> int:
        src, weight, dst = slots[op.src], self._matrices[op.weight], slots[op.dst]
        bias = None if op.bias is None else self._vectors[op.bias]
        epilogue = Epilogue(kind=op.epilogue, activation=op.activation)
        if len(src) <= self._few_tokens:
            is_spread = at + 1 in self._spread or (
                at + 1 == self._last_norm and self._is_whole and len(src) <= _HEAD_NORM_TOKENS
            )
            after = self._following(op.dst, at + 1, slots) if is_spread else None
            left = linear(
                src, weight, dst, bias=bias, epilogue=epilogue, is_invariant=self._is_invariant,
                squares=self._squares.get(op.src), following=after,
            )  # fmt: skip
            self._squares.pop(op.dst, None)
            if after is None:
                return 1
            if left is not None:
                self._squares[self._slot_of(at + 1)] = left
            return 2
        x = self._rooms[op.src].first(len(src)) if at in self._rounds[1] else src
        after = self._following(op.dst, at + 1, slots) if op.epilogue == "add" else None
        long_linear(x, weight, self._written(op.dst, at, slots), bias, epilogue, after)
        return 1 if after is None else 2

    def _norm(self, at: int, op: Norm, slots: dict[str, torch.Tensor]) -> int:
        weight = self._vectors[op.weight]
        if not op.add:
            rms_norm(slots[op.src], weight, self._written(op.dst, at, slots), eps=op.eps)
            return 1
        after = self._following(op.dst, at + 1, slots)
        rms_norm_add(slots[op.src], weight, slots[op.dst], eps=op.eps, following=after)
        return 1 if after is None else 2

    def _following(self, summed: str, at: int, slots: dict[str, torch.Tensor]) -> Following | None:
        """Return the norm of what was added to, if that comes next."""
        op = self._ops[at] if at < len(self._ops) else None
        if not isinstance(op, Norm) or op.add or op.src != summed:
            return None
        return Following(self._vectors[op.weight], self._written(op.dst, at, slots), op.eps)

    def _written(self, name: str, at: int, slots: dict[str, torch.Tensor]) -> torch.Tensor | Rounded:
        """Return where an op writes: a slot, or, where only fp8 products of many tokens read it, its room for those."""
        tokens = len(slots[name])
        if at in self._rounds[0] and tokens > self._few_tokens:
            return self._rooms[name].first(tokens)
        return slots[name]

    def _takes_rounded(self, op: Linear) -> bool:
        weight = self._matrices[op.weight]
        return takes_rounded(weight) and weight.k <= MOST_NUMBERS

    def _slot_of(self, at: int) -> str:
        """Name the slot that an op writes."""
        op = self._ops[at]
        assert not isinstance(op, Head)
        return op.dst

    def _attend_at_once(self, at: int, op: QkWrite, batch: DeviceBatch, slots: dict[str, torch.Tensor]) -> bool:
        """Rotate, write and attend in one launch, where every row is one token; False: nothing is done yet.

        Never where bits may not depend on the batch: sums of squares might be added in another order there.
        """
        after = self._ops[at + 1]
        cache, scales = self._layers[op.layer]
        is_served = batch.is_single and batch.reach is None and scales is None and not self._is_invariant
        if not (is_served and isinstance(after, Attention) and (after.src, after.layer) == (op.dst, op.layer)):
            return False
        self._squares.pop(after.dst, None)
        return all(
            single_attention(
                slots[op.src], slots[after.dst], cache, batch.tables, tiles, batch.positions, self._scoring(after),
                self._rotation(op),
            )
            for tiles in self._tiles(after, batch)
        )  # fmt: skip

    def _rotation(self, op: QkWrite) -> Rotation:
        return Rotation(
            inv_freq=None if op.rope is None else self._inv_freqs[op.rope],
            scale=1.0 if op.rope is None else self._rope_scales[op.rope],
            q_norm=None if op.q_norm is None else self._vectors[op.q_norm],
            k_norm=None if op.k_norm is None else self._vectors[op.k_norm],
            eps=op.eps,
        )

    def _scoring(self, op: Attention) -> Scoring:
        return Scoring(
            scale=op.scale,
            window=op.window,
            softcap=op.softcap,
            sinks=None if op.sinks is None else self._vectors[op.sinks],
        )

    def _qk_write(self, op: QkWrite, batch: DeviceBatch, slots: dict[str, torch.Tensor]) -> None:
        cache, scales = self._layers[op.layer]
        qk_write(
            slots[op.src], slots[op.dst], cache, batch.slots, batch.positions, self._rotation(op),
            scales=scales, reach=self._reach(slots[op.dst], batch),
        )  # fmt: skip

    def _attention(self, op: Attention, batch: DeviceBatch, slots: dict[str, torch.Tensor]) -> None:
        cache, scales = self._layers[op.layer]
        reach = self._reach(slots[op.src], batch)
        for tiles in self._tiles(op, batch):
            attention(
                slots[op.src], slots[op.dst], cache, batch.tables, tiles, batch.positions, self._scoring(op),
                scales=scales, reach=reach,
            )  # fmt: skip

    def _reach(self, queries: torch.Tensor, batch: DeviceBatch) -> TokenReach | None:
        """Return what the tokens of one layer see, with room for their queries turned back."""
        if batch.reach is None:
            return None
        windows, num_sinks = batch.reach.unbind()
        turned = self._turned[: queries.numel()].view(queries.shape)
        return TokenReach(windows=windows, num_sinks=num_sinks, turned=turned)

    def _tiles(self, op: Attention, batch: DeviceBatch) -> list[Tiles]:
        """Return the launches of one layer: tiles of single tokens, a bounded number at a time, and long ones."""
        short = batch.short
        parts = min(_INVARIANT_PARTS, self._most_parts)
        if not self._is_invariant:
            programs = max(short.shape[1], 1) * op.num_kv_heads
            # A power of two: each number is a kernel of its own, and all of them are compiled before the first request.
            parts = min(1 << (max(_WANTED_PROGRAMS // programs, 1).bit_length() - 1), self._most_parts)
        launches = [
            _cut(short[:, first : first + _TILES_AT_ONCE], 1, parts)
            for first in range(0, short.shape[1], _TILES_AT_ONCE)
        ]
        size = tile_size(op.num_heads // op.num_kv_heads, op.head_dim)
        if size in batch.long and batch.long[size].shape[1]:
            launches.append(_cut(batch.long[size], size, 1))
        return launches


def _cut(tiles: torch.Tensor, size: int, num_parts: int) -> Tiles:
    rows, first, count = tiles.unbind()
    return Tiles(rows=rows, first=first, count=count, size=size, num_parts=num_parts)
