"""Blocks of files taken apart where their bytes are: numbers, scales and lows of each group, by torch.

Owns nothing. Called by `load_weights`: a file goes to the device as it is, and is decoded or packed there.
The specification is `quant.blocks` and `quant.superblocks`, equal to the last bit; the layouts are described there.
Q2_K and Q3_K are not taken apart here: they are rare, and the host decodes them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from headrace.quant.formats import Format

PLAIN = {Format.F32: torch.float32, Format.F16: torch.float16, Format.BF16: torch.bfloat16}
GROUPED = frozenset(
    {Format.Q4_0, Format.Q4_1, Format.Q5_0, Format.Q5_1, Format.Q8_0, Format.Q4_K, Format.Q5_K, Format.Q6_K}
)


class Groups(NamedTuple):
    """Rows in groups: w = number * scale + low. numbers [N, K] uint8 or int8; scales and lows [N, groups] fp32."""

    numbers: torch.Tensor
    scales: torch.Tensor
    lows: torch.Tensor | None

    def to_float(self) -> torch.Tensor:
        """Return fp32 [N, K]."""
        wide = self.numbers.view(*self.scales.shape, -1).float() * self.scales[:, :, None]
        if self.lows is not None:
            wide += self.lows[:, :, None]
        return wide.view(len(self.numbers), -1)


def plain(data: torch.Tensor, stored: Format) -> torch.Tensor:
    """Return rows [N, row bytes] of a format of PLAIN in their own kind, [N, K]."""
    return data.view(PLAIN[stored])


def groups(data: torch.Tensor, stored: Format) -> Groups:
    """Take rows [N, row bytes] of blocks of a format of GROUPED apart."""
    blocks = data.view(-1, stored.block_bytes)
    numbers, scales, lows = _superblocks(blocks, stored) if stored.block_size == 256 else _blocks(blocks, stored)
    rows = len(data)
    return Groups(numbers.reshape(rows, -1), scales.reshape(rows, -1), None if lows is None else lows.reshape(rows, -1))


_Taken = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _blocks(b: torch.Tensor, stored: Format) -> _Taken:
    """One scale for 32 numbers."""
    scale = _half(b[:, 0:2])
    if stored is Format.Q8_0:
        return b[:, 2:].contiguous().view(torch.int8), scale, None
    if stored is Format.Q4_0:
        return _nibbles(b[:, 2:]), scale, scale * -8.0
    if stored is Format.Q4_1:
        return _nibbles(b[:, 4:]), scale, _half(b[:, 2:4])
    if stored is Format.Q5_0:
        return (_nibbles(b[:, 6:]) | _fifth(b[:, 2:6])).to(torch.int8) - 16, scale, None
    return _nibbles(b[:, 8:]) | _fifth(b[:, 4:8]), scale, _half(b[:, 2:4])


def _superblocks(b: torch.Tensor, stored: Format) -> _Taken:
    """256 numbers, whose groups have scales of a scale."""
    if stored is Format.Q6_K:
        low = _shifted(b[:, :128].reshape(-1, 2, 1, 64), (0, 4), 15).reshape(-1, 8, 32)
        high = _shifted(b[:, 128:192].reshape(-1, 2, 1, 32), (0, 2, 4, 6), 3).reshape(-1, 8, 32)
        scale = _half(b[:, 208:210]) * b[:, 192:208].contiguous().view(torch.int8).float()
        return (low | (high << 4)).to(torch.int8) - 32, scale, None
    first, second, shared = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat((first & 63, (shared & 15) | ((first >> 6) << 4)), 1).float()
    lows = torch.cat((second & 63, (shared >> 4) | ((second >> 6) << 4)), 1).float()
    numbers = _shifted(b[:, 16 if stored is Format.Q4_K else 48 :].reshape(-1, 4, 1, 32), (0, 4), 15)
    numbers = numbers.reshape(-1, 8, 32)
    if stored is Format.Q5_K:
        numbers = numbers | (_shifted(b[:, None, 16:48], tuple(range(8)), 1) << 4)
    return numbers, _half(b[:, 0:2]) * scales, -(_half(b[:, 2:4]) * lows)


def _shifted(b: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """Return [n, …, shifts, m] of [n, …, 1, m]: the bytes shifted right by each, and masked."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=b.device)[:, None]
    return (b >> by) & mask


def _half(b: torch.Tensor) -> torch.Tensor:
    """Read one fp16 of each block, [n, 1] fp32."""
    return b.contiguous().view(torch.float16).float()


def _nibbles(b: torch.Tensor) -> torch.Tensor:
    """Split 16 bytes into 32 numbers: low halves first, then high halves."""
    return torch.cat((b & 15, b >> 4), 1)


def _fifth(b: torch.Tensor) -> torch.Tensor:
    """Spread 4 bytes over 32 numbers 0 or 16, least significant bit first."""
    by = torch.arange(8, dtype=torch.uint8, device=b.device)
    return (((b[:, :, None] >> by) & 1) << 4).reshape(-1, 32)
