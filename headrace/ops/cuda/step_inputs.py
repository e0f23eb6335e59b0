"""What a step brings along is put where it belongs, in one kernel: tokens that are drawn already, changes of tables.

Owns nothing. Called by `executor.cuda` first in every step.
Invariant: nothing here depends on how much of the arrays is padding, so that a recorded graph does it.
Letters: T packed tokens, N lines of the last draw, C changes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import attempt, early, start, take_turn
from headrace.ops.cuda.sampling import OUT_TOKEN
from headrace.ops.cuda.sizes import cdiv

_LANES = 128


def begin_step(
    tokens: torch.Tensor,
    ahead: torch.Tensor,
    drawn: torch.Tensor,
    table: torch.Tensor,
    changes: torch.Tensor,
    *,
    vocab_size: int,
) -> None:
    """Write tokens that were drawn on the device into a step's tokens, and blocks into the block tables.

    tokens   [T] int32, changed where `ahead` [T] int32 is a line of `drawn` [N, …] fp64, and not below 0
    table    [lines, width] int32; its last place is nobody's
    changes  [2, C] int32: flat places in `table`, below 0 where there is nothing to do, and blocks. No place twice
    """
    width = drawn.stride(0)
    num_tokens, num_changes = len(tokens), changes.shape[1]
    grid = (cdiv(max(num_tokens, num_changes), _LANES),)
    if attempt(
        "step inputs",
        tokens,
        lambda: start(
            _begin_step, grid, tokens, ahead, drawn, table, changes, num_tokens, num_changes, width, vocab_size,
            TOKEN=OUT_TOKEN, LANES=_LANES, **early(), num_warps=4,
        ),
    ):  # fmt: skip
        return
    known = drawn[ahead.clamp(min=0).long(), OUT_TOKEN].clamp(0, vocab_size - 1).to(tokens.dtype)
    tokens.copy_(torch.where(ahead >= 0, known, tokens))
    places, blocks = changes.unbind()
    table.view(-1)[torch.where(places >= 0, places, table.numel() - 1).long()] = blocks


@triton.jit(do_not_specialize=["num_tokens", "num_changes", "width", "vocab_size"])
def _begin_step(
    tokens, ahead, drawn, table, changes, num_tokens, num_changes, width, vocab_size,
    TOKEN: tl.constexpr, LANES: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    line = tl.load(ahead + i, mask=i < num_tokens, other=-1)
    token = tl.load(drawn + line.to(tl.int64) * width + TOKEN, mask=line >= 0, other=0.0).to(tl.int32)
    tl.store(tokens + i, tl.minimum(tl.maximum(token, 0), vocab_size - 1), mask=line >= 0)
    place = tl.load(changes + i, mask=i < num_changes, other=-1)
    block = tl.load(changes + num_changes + i, mask=i < num_changes, other=0)
    tl.store(table + place, block, mask=place >= 0)
