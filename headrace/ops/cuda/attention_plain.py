"""Attention without a kernel: tile by tile over gathered keys. Slow, and it waits for the device to know the sizes.

Owns nothing. Called by `attention` where its kernel does not compile. Letters as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

PlainReach = tuple[Sequence[int], Sequence[int], torch.Tensor]  # window and sinks of each token, turned queries


def attend_plainly(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    tables: torch.Tensor,
    tiles: Sequence[tuple[int, int, int]],
    positions: Sequence[int],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    reach: PlainReach | None,
) -> None:
    """Attend the tokens of each tile (row, first token, tokens) to their own sequence."""
    _, _, kv_heads, block_size, d = cache.shape
    for row, first, count in tiles:
        if not count:
            continue
        start = positions[first]
        high = start + count
        held = _gathered(cache, scales, tables[row, : -(-high // block_size)])[:, :, :high]
        heads = _grouped(q[first : first + count], kv_heads, d)
        w, s = window, 0
        if reach is not None and 0 < reach[0][first] < (window or high + 1):
            w, s = reach[0][first], reach[1][first]
        places = torch.arange(high, device=q.device)
        own = torch.arange(start, high, device=q.device)[:, None]
        scores = heads @ held[0][:, None].transpose(-1, -2)
        seen = places <= own
        if w is not None:
            is_far = own >= w + s
            seen &= (places > own - w) | ~is_far
            if s and reach is not None:
                back = _grouped(reach[2][first : first + count], kv_heads, d) @ held[0][:, None].transpose(-1, -2)
                is_sink = is_far & (places < s)
                scores, seen = torch.where(is_sink, back, scores), seen | is_sink
        scores = scores * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            extra = sinks.view(kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            weights = torch.softmax(torch.cat((scores, extra), -1), -1)[..., :-1]
        else:
            weights = torch.softmax(scores, -1)
        result = (weights @ held[1][:, None]).permute(2, 0, 1, 3)
        out[first : first + count] = result.reshape(count, -1).to(out.dtype)


def _grouped(x: torch.Tensor, kv_heads: int, d: int) -> torch.Tensor:
    """Return [count, Nq·D] as fp32 [Nkv, G, count, D]."""
    return x.view(len(x), kv_heads, -1, d).float().permute(1, 2, 0, 3)


def _gathered(cache: torch.Tensor, scales: torch.Tensor | None, blocks: torch.Tensor) -> torch.Tensor:
    """Return K and V of some blocks, one after another, fp32 [2, Nkv, positions, D]; int8 keys stay transformed."""
    held = cache[blocks.long()].float()
    if scales is not None:
        held = held * scales[blocks.long()].float()[..., None]
    return held.permute(1, 2, 0, 3, 4).reshape(2, cache.shape[2], -1, cache.shape[4])
