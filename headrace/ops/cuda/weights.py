"""A weight matrix on the device, in one of the forms that the kernels multiply with, and its numbers back.

Owns: the layouts. Made by `executor.cuda`, read by `linear`. N outputs, K inputs, groups of `group` inputs.

    dense  values [N, K]                       bf16, fp16 or fp32
    int8   values [N, K] int8                  w = q * scale
    int4   values [N, K/2] uint8, K padded to a multiple of 64 with numbers that stand for 0
           byte b of chunk c (32 bytes) holds    low: input 64c + b     high: input 64c + 32 + b
                                               w = q * scale + low, scale and low per group of 32, 64, …
    fp8    values [N, K] e4m3                  w = q * scale, one scale per output

scales, lows  [N, K/group]: fp32 where a scale is per output (group K), else fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

WeightForm = Literal["dense", "int8", "int4", "fp8"]

FORM_NUMBERS: dict[WeightForm, int] = {"dense": 0, "int8": 1, "int4": 2, "fp8": 3}  # as kernels know them
INT4_CHUNK = 64
_FP8_LARGEST = 448.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One matrix [n, k]. `scales` and `lows` are None where the form has none."""

    form: WeightForm
    n: int
    k: int
    group: int
    values: torch.Tensor
    scales: torch.Tensor | None = None
    lows: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        held = (self.values, self.scales, self.lows)
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def rows(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Return some rows as fp32 [rows, K]. Cost: reads these rows only."""
        values = self.values[index]
        if self.form == "dense":
            return values.float()
        if self.form == "int4":
            chunks = values.view(len(values), -1, INT4_CHUNK // 2)
            wide = torch.stack((chunks & 15, chunks >> 4), 2).view(len(values), -1).float()
        else:
            wide = values.float()
        assert self.scales is not None
        grouped = wide.view(len(wide), self.scales.shape[1], -1) * self.scales[index].float()[:, :, None]
        if self.lows is not None:
            grouped = grouped + self.lows[index].float()[:, :, None]
        return grouped.reshape(len(wide), -1)[:, : self.k]


def dense(values: torch.Tensor) -> Weight:
    """Keep a matrix as it is."""
    return Weight(form="dense", n=values.shape[0], k=values.shape[1], group=0, values=values.contiguous())


def int8(values: torch.Tensor, group: int | None = None) -> Weight:
    """Round fp32 [N, K] to 127 steps either way of the largest in each group; None: per output."""
    n, k = values.shape
    grouped = values.float().view(n, -1, group or k)
    scales = grouped.abs().amax(-1) / 127.0
    if group is not None:
        scales = scales.half().float()
    steps = torch.round(grouped / scales.clamp(min=1e-30)[:, :, None]).clamp(-127, 127)
    kept = scales if group is None else scales.half()
    return Weight(form="int8", n=n, k=k, group=group or k, values=steps.to(torch.int8).view(n, k), scales=kept)


def int4(values: torch.Tensor, group: int = 32) -> Weight:
    """Round fp32 [N, K] to 16 steps between the least and the largest of each group."""
    n, k = values.shape
    padded = -(-k // INT4_CHUNK) * INT4_CHUNK
    wide = torch.nn.functional.pad(values.float(), (0, padded - k)).view(n, -1, group)
    lows = wide.amin(-1).half()
    scales = ((wide.amax(-1) - lows.float()) / 15.0).half()
    steps = torch.round((wide - lows.float()[:, :, None]) / scales.float().clamp(min=1e-30)[:, :, None]).clamp(0, 15)
    return from_nibbles(steps.view(n, padded).to(torch.uint8), scales, lows, k=k)


def from_nibbles(steps: torch.Tensor, scales: torch.Tensor, lows: torch.Tensor, *, k: int) -> Weight:
    """Pack 4-bit numbers [N, K padded] that are known already, with scales and lows [N, groups] fp16."""
    n, padded = steps.shape
    chunks = steps.view(n, -1, 2, INT4_CHUNK // 2)
    packed = (chunks[:, :, 0] | (chunks[:, :, 1] << 4)).reshape(n, padded // 2)
    group = padded // scales.shape[1]
    return Weight(form="int4", n=n, k=k, group=group, values=packed.contiguous(), scales=scales, lows=lows)


def fp8(values: torch.Tensor) -> Weight:
    """Round fp32 [N, K] to e4m3 with one scale per output."""
    wide = values.float()
    scales = (wide.abs().amax(-1, keepdim=True) / _FP8_LARGEST).clamp(min=1e-30)
    kept = (wide / scales).to(torch.float8_e4m3fn)
    return Weight(form="fp8", n=wide.shape[0], k=wide.shape[1], group=wide.shape[1], values=kept, scales=scales)
