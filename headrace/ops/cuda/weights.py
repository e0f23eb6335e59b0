"""A weight matrix on the device, in one of the forms that the kernels multiply with, and its numbers back.

Owns: the layouts. Made by `executor.cuda`, read by `linear` and `rows`. N outputs, K inputs, groups of `group` inputs.

    dense  values [N, K]                  bf16, fp16 or fp32
    int8   values [K/64, N, 32] words     w = q * scale
           byte b of word j of chunk c: input 64c + 32b + j
    int4   values [K/128, N, 32] words    w = (q - 8) * scale + middle
           four bits i of word j of chunk c: input 128c + 32i + j
    fp8    values [N, K] e4m3             w = q * scale, one scale per output

Words have 16 bits. 64 bytes of each output lie together, then those of the next output: what a kernel reads in one go
is one piece of memory, and its words are registers of the matrix units as they are. K is padded to whole chunks with
numbers that stand for 0.

scales  per output: fp32 [N, 1]
        int8 in groups of 32 or more: [K/64, N, 2], of the lower and of the upper half of a chunk
        int4: [K/group, N, 2], scale and middle: what stands for 8 of the 16 steps
        In groups they are bf16 where activations are, else fp16. bf16 keeps eight bits: at most 0.2 % of a scale or
        middle is lost, which is why int4 is held by its middle: lows are larger, and numbers that lie evenly round 0
        have a middle of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

WeightForm = Literal["dense", "int8", "int4", "fp8"]

FORM_NUMBERS: dict[WeightForm, int] = {"dense": 0, "int8": 1, "int4": 2, "fp8": 3}  # as kernels know them
CHUNK_INPUTS: dict[WeightForm, int] = {"int8": 64, "int4": 128}
_FP8_LARGEST = 448.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One matrix [n, k]. `scales` is None where the form has none; `group` is 0 where one serves a whole output."""

    form: WeightForm
    n: int
    k: int
    group: int
    values: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        held = (self.values, self.scales)
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def scale_words(self) -> tuple[torch.Tensor, torch.dtype]:
        """Return the scales as kernels read them, those of groups in pairs of one word, and the kind of these."""
        if self.scales is None:
            return self.values, torch.float16
        if not self.group:
            return self.scales, torch.float16
        return self.scales.view(torch.int32), self.scales.dtype

    def rows(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Return some rows as fp32 [rows, K]. Cost: reads these rows only."""
        if self.form == "dense":
            return self.values[index].float()
        assert self.scales is not None
        if self.form == "fp8":
            return self.values[index].float() * self.scales[index]
        words = self.values[:, index].int()
        if self.form == "int8":
            wide = torch.stack(((words << 24) >> 24, words >> 8), 2).float()  # [chunks, rows, 2, 32]
            if not self.group:
                wide *= self.scales[index][:, :, None]
            else:
                wide *= self.scales[:, index].float()[..., None]
        else:
            wide = torch.stack([((words >> place) & 15) - 8 for place in (0, 4, 8, 12)], 2).float()
            pairs = self.scales.view(len(words), -1, self.n, 2)[:, :, index].transpose(1, 2).float()
            pairs = pairs.repeat_interleave(4 // pairs.shape[2], 2)
            wide = wide * pairs[..., 0, None] + pairs[..., 1, None]
        return wide.transpose(0, 1).reshape(words.shape[1], -1)[:, : self.k]


def dense(values: torch.Tensor) -> Weight:
    """Keep a matrix as it is."""
    return Weight(form="dense", n=values.shape[0], k=values.shape[1], group=0, values=values.contiguous())


def int8(values: torch.Tensor, group: int | None = None, kind: torch.dtype = torch.bfloat16) -> Weight:
    """Round fp32 [N, K] to 127 steps either way of the largest in each group; None: of each output, in fp32."""
    n, k = values.shape
    grouped = values.float().view(n, -1, group or k)
    scales = grouped.abs().amax(-1) / 127.0
    if group is not None:
        scales = scales.to(kind).float()
    steps = torch.round(grouped / scales.clamp(min=1e-30)[:, :, None]).clamp(-127, 127).to(torch.int8).view(n, k)
    return from_bytes(steps, scales if group is None else scales.to(kind))


def from_bytes(steps: torch.Tensor, scales: torch.Tensor) -> Weight:
    """Pack int8 numbers [N, K] that are known already, with scales [N, 1] fp32 or [N, groups]."""
    n, k = steps.shape
    chunks = -(-k // 64)
    halves = torch.nn.functional.pad(steps, (0, chunks * 64 - k)).view(n, chunks, 2, 32)
    words = halves.permute(1, 0, 3, 2).contiguous().view(torch.int16).view(chunks, n, 32)
    if scales.shape[1] == 1 and scales.dtype == torch.float32:
        return Weight(form="int8", n=n, k=k, group=0, values=words, scales=scales.float())
    group = k // scales.shape[1]
    wide = scales.repeat_interleave(group // 32, 1)
    wide = torch.nn.functional.pad(wide, (0, chunks * 2 - wide.shape[1])).view(n, chunks, 2)
    return Weight(form="int8", n=n, k=k, group=group, values=words, scales=wide.transpose(0, 1).contiguous())


def int4(values: torch.Tensor, group: int = 32, kind: torch.dtype = torch.bfloat16) -> Weight:
    """Round fp32 [N, K] to 16 steps between the least and the largest of each group."""
    n, k = values.shape
    wide = torch.nn.functional.pad(values.float(), (0, -k % group)).view(n, -1, group)
    lows, tops = wide.amin(-1), wide.amax(-1)
    scales = ((tops - lows) / 15.0).to(kind)
    middles = (lows + scales.float() * 8.0).to(kind)
    steps = (wide - middles.float()[:, :, None]) / scales.float().clamp(min=1e-30)[:, :, None] + 8.0
    return from_nibbles(torch.round(steps).clamp(0, 15).view(n, -1).to(torch.uint8), scales, middles, k=k)


def from_nibbles(steps: torch.Tensor, scales: torch.Tensor, middles: torch.Tensor, *, k: int) -> Weight:
    """Pack 4-bit numbers [N, K in whole groups] that are known already, with scales and middles [N, groups]."""
    n, whole = steps.shape
    group = whole // scales.shape[1]
    chunks = -(-whole // 128)
    quarters = torch.nn.functional.pad(steps, (0, chunks * 128 - whole)).view(n, chunks, 4, 32)
    lower, upper = quarters[:, :, 0] | (quarters[:, :, 1] << 4), quarters[:, :, 2] | (quarters[:, :, 3] << 4)
    words = torch.stack((lower, upper), -1).transpose(0, 1).contiguous().view(torch.int16).view(chunks, n, 32)
    missing = chunks * 128 // group - scales.shape[1]
    pairs = torch.nn.functional.pad(torch.stack((scales, middles), -1), (0, 0, 0, missing))
    return Weight(form="int4", n=n, k=k, group=group, values=words, scales=pairs.transpose(0, 1).contiguous())


def fp8(values: torch.Tensor) -> Weight:
    """Round fp32 [N, K] to e4m3 with one scale per output."""
    wide = values.float()
    scales = (wide.abs().amax(-1, keepdim=True) / _FP8_LARGEST).clamp(min=1e-30)
    kept = (wide / scales).to(torch.float8_e4m3fn)
    return Weight(form="fp8", n=wide.shape[0], k=wide.shape[1], group=0, values=kept, scales=scales)
