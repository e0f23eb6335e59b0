"""What becomes of a product: a bias, an activation of one half times the other, a sum; in kernels and in plain torch.

Owns: the numbers that kernels know activations by. Called by `linear` and `long_products`.
The specification is `ops.reference.activate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl

ActivationName = Literal["silu", "gelu_tanh", "gelu", "relu2"]

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu2": 3}
EPILOGUES = {"none": 0, "add": 1, "glu": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What becomes of a product: see `model.program.Linear`. `scale` and `softcap` are a head's."""

    kind: Literal["none", "add", "glu"] = "none"
    activation: ActivationName = "silu"
    scale: float = 1.0
    softcap: float | None = None


@triton.jit
def activate(x, KIND: tl.constexpr):
    """Apply an activation to fp32."""
    if KIND == 0:
        y = x / (1.0 + tl.exp(-x))
    elif KIND == 1:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        y = 0.5 * x * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
    elif KIND == 2:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        y = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    return y


def activated(x: torch.Tensor, activation: ActivationName) -> torch.Tensor:
    """Apply an activation by a torch op."""
    match activation:
        case "silu":
            return torch.nn.functional.silu(x)
        case "gelu_tanh":
            return torch.nn.functional.gelu(x, approximate="tanh")
        case "gelu":
            return torch.nn.functional.gelu(x)
        case "relu2":
            return torch.relu(x).square()
