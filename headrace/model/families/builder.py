"""`Builder`: the vocabulary of decoder families: writes the ops of a block and declares the weights they name.

Owns the lists a Program is made of while it is being written; one Builder makes one Program. Only family files use it.
What differs between families (order of norms, extra norms, biases, windows) stays in their files; nothing here asks
which family is being built.

Slots:  x residual stream · h normed input of a branch · qkv · q rotated queries · attn · ffn · y a branch's result
        before the norm that closes it
"""

from __future__ import annotations

from headrace.model.config import ModelConfig, RopeConfig
from headrace.model.program import (
    Attention,
    CacheLayer,
    Embed,
    Head,
    Linear,
    Norm,
    Op,
    Program,
    QkWrite,
    RopeTable,
    WeightSpec,
)
from headrace.model.rope import rope_table


class Builder:
    """Collects ops, weights, rotation tables and cache layers in order."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._ops: list[Op] = []
        self._weights: list[WeightSpec] = []
        self._ropes: list[RopeTable] = []
        self._cache_layers: list[CacheLayer] = []

    def embed(self) -> None:
        """Start the residual stream from the token table."""
        config = self.config
        table = self._weight("embed", (config.vocab_size, config.hidden_size), "model.embed_tokens.weight")
        self._ops.append(Embed(table=table, scale=config.embed_scale))

    def norm(self, name: str, part: str, *, src: str = "x", dst: str = "h", add: bool = False) -> None:
        """Normalize a slot; with `add`, into the residual stream."""
        weight = self._weight(name, (self.config.hidden_size,), f"{part}.weight", offset=self.config.norm_offset)
        self._ops.append(Norm(src=src, dst=dst, weight=weight, eps=self.config.norm_eps, add=add))

    def attention(self, layer: int, *, rope: int, qk_norm: bool = False, window: int | None = None) -> None:
        """Project `h`, write K and V to a new cache layer and attend: the result is in slot `attn`."""
        config = self.config
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}.self_attn"
        rows = (heads + 2 * kv_heads) * dim
        qkv = self._weight(f"{ours}.qkv", (rows, config.hidden_size), *(f"{theirs}.{p}_proj.weight" for p in "qkv"))
        bias = None
        if config.qkv_bias:
            bias = self._weight(f"{ours}.qkv_bias", (rows,), *(f"{theirs}.{p}_proj.bias" for p in "qkv"))
        q_norm = k_norm = None
        if qk_norm:
            q_norm = self._weight(f"{ours}.q_norm", (dim,), f"{theirs}.q_norm.weight", offset=config.norm_offset)
            k_norm = self._weight(f"{ours}.k_norm", (dim,), f"{theirs}.k_norm.weight", offset=config.norm_offset)
        cache = len(self._cache_layers)
        self._cache_layers.append(CacheLayer(kv_heads=kv_heads, head_dim=dim))
        self._ops += [
            Linear(src="h", dst="qkv", weight=qkv, bias=bias),
            QkWrite(
                src="qkv",
                dst="q",
                layer=cache,
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=dim,
                rope=rope,
                q_norm=q_norm,
                k_norm=k_norm,
                eps=config.norm_eps,
            ),
            Attention(
                src="q",
                dst="attn",
                layer=cache,
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=dim,
                scale=dim**-0.5 if config.attention_scale is None else config.attention_scale,
                window=window,
                softcap=config.attention_softcap,
            ),
        ]

    def project_out(self, layer: int, *, add: bool) -> None:
        """Bring `attn` back to the hidden size: into the residual stream, or to `y` for a closing norm."""
        config = self.config
        shape = (config.hidden_size, config.num_heads * config.head_dim)
        weight = self._weight(f"layers.{layer}.o", shape, f"model.layers.{layer}.self_attn.o_proj.weight")
        self._close("attn", weight, add=add)

    def gated_mlp(self, layer: int, *, add: bool) -> None:
        """Run the gated feed-forward of `h`: into the residual stream, or to `y` for a closing norm."""
        config = self.config
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}.mlp"
        gate_up = self._weight(
            f"{ours}.gate_up",
            (2 * config.intermediate_size, config.hidden_size),
            f"{theirs}.gate_proj.weight",
            f"{theirs}.up_proj.weight",
        )
        down = self._weight(
            f"{ours}.down", (config.hidden_size, config.intermediate_size), f"{theirs}.down_proj.weight"
        )
        self._ops.append(Linear(src="h", dst="ffn", weight=gate_up, epilogue="glu", activation=config.activation))
        self._close("ffn", down, add=add)

    def head(self) -> None:
        """End with the final norm and the output table, the embedding again when tied."""
        config = self.config
        self.norm("norm", "model.norm")
        table = "embed"
        if not config.tie_embeddings:
            table = self._weight("head", (config.vocab_size, config.hidden_size), "lm_head.weight")
        self._ops.append(Head(src="h", table=table, softcap=config.final_softcap))

    def rope(self, rope: RopeConfig) -> int:
        """Return the index of this rotation's table, made on first use."""
        table = rope_table(rope, head_dim=self.config.head_dim, max_positions=self.config.max_positions)
        if table not in self._ropes:
            self._ropes.append(table)
        return self._ropes.index(table)

    def window(self, layer: int) -> int | None:
        """Return the layer's window in tokens; None where it sees everything."""
        windowed = self.config.windowed_layers
        return self.config.window if not windowed or windowed[layer] else None

    def program(self) -> Program:
        """Return what was written; ValueError if an op does not fit."""
        config = self.config
        program = Program(
            family=config.family,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_positions=config.max_positions,
            ops=tuple(self._ops),
            weights=tuple(self._weights),
            ropes=tuple(self._ropes),
            cache_layers=tuple(self._cache_layers),
        )
        program.check()
        return program

    def _weight(self, name: str, shape: tuple[int, ...], *parts: str, offset: float = 0.0) -> str:
        """Declare a weight and return its name."""
        self._weights.append(WeightSpec(name=name, shape=shape, parts=parts, offset=offset))
        return name

    def _close(self, src: str, weight: str, *, add: bool) -> None:
        """End a branch: add to the residual stream now, or leave the result in `y`."""
        if add:
            self._ops.append(Linear(src=src, dst="x", weight=weight, epilogue="add"))
        else:
            self._ops.append(Linear(src=src, dst="y", weight=weight))
