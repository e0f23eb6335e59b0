"""`Program`: a model as data. The contract between families (which write it) and backends (which run it).

A Program is a straight list of ops over named slots, for T packed tokens of any mix of sequences. The slot `x` is the
residual stream [T, hidden], kept in fp32 by every backend; the other slots are scratch. Weights are named; their bytes
and formats belong to the backend. Quantization, adapters and parallelism transform a Program or its weights; they are
never branches inside a family.

Invariant: ops run in list order; a slot is written before it is read; `check()` proves this and all shapes.
Shape letters: T packed tokens, H hidden, F feed-forward, Nq query heads, Nkv kv heads, D head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "gelu", "relu2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """One weight of the Program, made of checkpoint tensors stacked on the first axis.

    name   what ops call it, e.g. `layers.3.qkv`
    shape  [N, K] for matrices (N outputs, K inputs), [N] for vectors
    parts  checkpoint tensor names in stacking order, HF spelling
    offset added to every element once at load (Gemma's norms store weight - 1)
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeTable:
    """Rotation frequencies, every kind of scaling already applied.

    inv_freq  [rotary_dim/2] radians per position; pair i turns by position * inv_freq[i]
    scale     factor on cos and sin (YaRN), 1.0 otherwise
    Pairs are (i, i + rotary_dim/2): the half-split convention of HF checkpoints. Readers of files that store
    interleaved pairs permute the rows of Q and K at load.
    """

    inv_freq: tuple[float, ...]
    scale: float = 1.0

    @property
    def rotary_dim(self) -> int:
        """Count the leading channels of a head that are rotated."""
        return 2 * len(self.inv_freq)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """Shape of one layer's K and V: what a block of that layer must hold per token."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """x[t] = table[token[t]] * scale."""

    table: str
    dst: str = "x"
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """dst = rms_norm(src) * weight, or dst += … when `add` (a norm that closes a residual branch).

    rms: src / sqrt(mean(src²) + eps), in fp32, over the last axis.
    """

    src: str
    dst: str
    weight: str
    eps: float
    add: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """dst = epilogue(src @ weight.T + bias).

    epilogue  none: dst [T, N]
              add:  dst [T, N] += result (residual)
              glu:  weight is [2F, K], gate rows first, then up rows; dst [T, F] = activation(gate) * up
    """

    src: str
    dst: str
    weight: str
    bias: str | None = None
    epilogue: Literal["none", "add", "glu"] = "none"
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True, kw_only=True)
class QkWrite:
    """Split `src` [T, (Nq + 2·Nkv)·D] into q, k, v; norm and rotate q and k; write k and v to cache layer `layer`.

    q goes to `dst` [T, Nq·D]. q_norm / k_norm: per-head RMS norm weights [D], before the rotation.
    rope indexes `Program.ropes`; None leaves q and k unrotated.
    """

    src: str
    dst: str
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: int | None
    q_norm: str | None = None
    k_norm: str | None = None
    eps: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Causal attention of `src` [T, Nq·D] over cache layer `layer`, each token over its own sequence. dst [T, Nq·D].

    score = q·k * scale; with softcap c: score = c * tanh(score / c); then mask; then softmax.
    window W: token p sees positions p-W+1 … p. None: all up to p.
    sinks: a weight [Nq], one more score in each head's softmax, without a value.
    A row's reach (`core.step.Row`) narrows what its tokens see further; it is no part of the model.
    Query head h reads kv head h // (Nq // Nkv).
    """

    src: str
    dst: str
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """logits [rows, V] = (src[rows] @ table.T) * scale, then softcap c: c * tanh(logits / c). A step picks the rows."""

    src: str
    table: str
    scale: float = 1.0
    softcap: float | None = None


Op = Embed | Norm | Linear | QkWrite | Attention | Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A model that any backend can run. `max_positions` is the context the checkpoint was trained for."""

    family: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    ops: tuple[Op, ...]
    weights: tuple[WeightSpec, ...]
    ropes: tuple[RopeTable, ...]
    cache_layers: tuple[CacheLayer, ...]

    def weight(self, name: str) -> WeightSpec:
        """Return the spec called `name`; KeyError when a family forgot to declare it."""
        for spec in self.weights:
            if spec.name == name:
                return spec
        raise KeyError(name)

    def slot_widths(self) -> dict[str, int]:
        """Return each slot's channels per token, derived from the ops that write it."""
        shapes = {spec.name: spec.shape for spec in self.weights}
        widths: dict[str, int] = {}
        for op in self.ops:
            match op:
                case Embed():
                    widths[op.dst] = shapes[op.table][1]
                case Norm():
                    widths[op.dst] = widths[op.src]
                case Linear():
                    rows = shapes[op.weight][0]
                    widths[op.dst] = rows // 2 if op.epilogue == "glu" else rows
                case QkWrite() | Attention():
                    widths[op.dst] = op.num_heads * op.head_dim
                case Head():
                    pass
        return widths

    def widest_window(self) -> int | None:
        """Return the widest window of the attention layers; None if one of them attends to everything."""
        windows = [op.window for op in self.ops if isinstance(op, Attention)]
        widest = max((window or 0 for window in windows), default=0)
        return widest if all(windows) and widest else None

    def check(self) -> None:
        """Raise ValueError naming the first op that reads an unwritten slot or does not fit its weight."""
        shapes = {spec.name: spec.shape for spec in self.weights}
        widths: dict[str, int] = {}
        for i, op in enumerate(self.ops):
            where = f"op {i} ({type(op).__name__})"
            if not isinstance(op, Embed) and op.src not in widths:
                raise ValueError(f"{where} reads slot '{op.src}' before it is written")
            match op:
                case Embed():
                    widths[op.dst] = shapes[op.table][1]
                case Norm():
                    if shapes[op.weight] != (widths[op.src],):
                        raise ValueError(f"{where}: weight {shapes[op.weight]} for {widths[op.src]} channels")
                    widths[op.dst] = widths[op.src]
                case Linear():
                    rows, cols = shapes[op.weight]
                    if cols != widths[op.src]:
                        raise ValueError(f"{where}: weight takes {cols} channels, slot '{op.src}' has {widths[op.src]}")
                    out = rows // 2 if op.epilogue == "glu" else rows
                    if op.epilogue == "add" and widths.get(op.dst) != out:
                        raise ValueError(f"{where} adds {out} channels to slot '{op.dst}'")
                    widths[op.dst] = out
                case QkWrite():
                    if widths[op.src] != (op.num_heads + 2 * op.num_kv_heads) * op.head_dim:
                        raise ValueError(f"{where}: slot '{op.src}' has {widths[op.src]} channels")
                    layer = self.cache_layers[op.layer]
                    if (layer.kv_heads, layer.head_dim) != (op.num_kv_heads, op.head_dim):
                        raise ValueError(f"{where}: cache layer {op.layer} has another shape")
                    widths[op.dst] = op.num_heads * op.head_dim
                case Attention():
                    if widths[op.src] != op.num_heads * op.head_dim or op.num_heads % op.num_kv_heads:
                        raise ValueError(f"{where}: heads do not fit slot '{op.src}'")
                    if op.sinks is not None and shapes[op.sinks] != (op.num_heads,):
                        raise ValueError(f"{where}: sinks {shapes[op.sinks]} for {op.num_heads} heads")
                    widths[op.dst] = op.num_heads * op.head_dim
                case Head():
                    if shapes[op.table] != (self.vocab_size, widths[op.src]):
                        raise ValueError(f"{where}: table {shapes[op.table]} for vocabulary {self.vocab_size}")
