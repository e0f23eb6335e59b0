"""Rotation, KV write and attention of single tokens in one launch: what two launches write, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from triton.runtime.errors import PTXASError

from headrace.executor.cuda import model
from headrace.ops.cuda import attention_single, launching
from headrace.ops.cuda.attention import Scoring, Tiles, attention
from headrace.ops.cuda.attention_single import single_attention
from headrace.ops.cuda.rope import Rotation, qk_write
from headrace.testing.checkpoints import write_checkpoint
from tests.gpu.test_executor import cuda, generate, prompts, reference

BLOCK_SIZE = 16
ERRORS = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Scene:
    """Rows whose last token is at given positions; the last line is of a padded token."""

    def __init__(
        self,
        device: str,
        positions: list[int],
        *,
        heads: int,
        kv_heads: int,
        d: int,
        kind: torch.dtype = torch.float32,
        rotary: int | None = None,
        norms: str = "",
        block_size: int = BLOCK_SIZE,
    ) -> None:
        random = np.random.RandomState(heads + d)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.from_numpy(random.standard_normal(shape).astype(np.float32)).to(device)

        self.heads, self.d, self.block_size = heads, d, block_size
        count = len(positions)
        self.qkv = drawn(count + 1, (heads + 2 * kv_heads) * d).to(kind)
        width = max(positions) // block_size + 1
        self.padded = count * width  # the block behind the pool
        self.cache = drawn(self.padded + 1, 2, kv_heads, block_size, d).to(kind)
        order = random.permutation(self.padded).astype(np.int32)
        self.tables = torch.from_numpy(order).view(count, width).to(device)
        self.positions = torch.tensor([*positions, 0], dtype=torch.int32, device=device)
        blocks = [int(self.tables[row, at // block_size]) for row, at in enumerate(positions)]
        slots = [block * block_size + at % block_size for block, at in zip(blocks, positions, strict=True)]
        self.slots = torch.tensor([*slots, self.padded * block_size], dtype=torch.int32, device=device)
        for slot in slots:  # nobody may count what lies there before
            self.cache[slot // block_size, :, :, slot % block_size] = torch.nan
        rotary = d if rotary is None else rotary
        frequencies = 10000.0 ** -(torch.arange(0, rotary, 2, device=device) / max(rotary, 1))
        self.rotation = Rotation(
            inv_freq=frequencies.float() if rotary else None,
            scale=1.25,
            q_norm=drawn(d) if "q" in norms else None,
            k_norm=drawn(d) if "k" in norms else None,
            eps=1e-6,
        )

    def tiles(self, num_parts: int) -> Tiles:
        count = len(self.tables)
        lines = [[*range(count), 0], [*range(count), 0], [1] * count + [0]]
        rows, first, of = (torch.tensor(line, dtype=torch.int32, device=self.qkv.device) for line in lines)
        return Tiles(rows=rows, first=first, count=of, size=1, num_parts=num_parts)

    def attended(self, num_parts: int, scoring: Scoring, *, is_single: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output and the cache."""
        out = torch.full((len(self.qkv), self.heads * self.d), torch.nan, dtype=self.qkv.dtype, device=self.qkv.device)
        cache, q = self.cache.clone(), torch.full_like(out, torch.nan)
        given = (cache, self.tables, self.tiles(num_parts), self.positions, scoring)
        if is_single:
            assert single_attention(self.qkv, out, *given, self.rotation)
        else:
            qk_write(self.qkv, q, cache, self.slots, self.positions, self.rotation)
            attention(q, out, *given)
        return out, cache

    def check(self, num_parts: int, scoring: Scoring) -> None:
        """Compare with two launches."""
        expected, written = self.attended(num_parts, scoring, is_single=False)
        found, cache = self.attended(num_parts, scoring, is_single=True)
        error = ERRORS[found.dtype]
        torch.testing.assert_close(found[:-1], expected[:-1], rtol=error, atol=error)
        assert not found[:-1].isnan().any()
        assert found[-1].isnan().all()
        # To the bit; the padded token writes nothing now.
        assert torch.equal(cache[: self.padded], written[: self.padded])
        assert torch.equal(cache[self.padded], self.cache[self.padded])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "rotary", "norms", "kind", "parts"),
    [
        (4, 2, 64, None, "", torch.float32, 4),
        (6, 2, 80, 32, "qk", torch.float32, 4),
        (7, 1, 96, None, "k", torch.bfloat16, 2),
        (2, 2, 128, 0, "q", torch.float16, 1),
        (20, 1, 32, None, "", torch.bfloat16, 4),
        (4, 2, 256, None, "qk", torch.bfloat16, 1),
    ],
)
def test_one_launch_writes_and_computes_what_two_do(
    device: str, heads: int, kv_heads: int, d: int, rotary: int | None, norms: str, kind: torch.dtype, parts: int
) -> None:
    # The first token of all; the first of a part and of a block; one alone in its part; any.
    positions = [0, 128, 63, 150]
    scene = Scene(device, positions, heads=heads, kv_heads=kv_heads, d=d, kind=kind, rotary=rotary, norms=norms)
    scene.check(parts, Scoring(scale=d**-0.5))


@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks", "parts"),
    [(7, 5.0, True, 1), (40, None, True, 4), (None, 3.0, False, 4)],
)
def test_windows_caps_and_sinks_of_layers(
    device: str, window: int | None, softcap: float | None, has_sinks: bool, parts: int
) -> None:
    scene = Scene(device, [0, 6, 7, 299], heads=4, kv_heads=2, d=16, block_size=8)
    sinks = torch.tensor([-1.0, 0.5, 2.0, 9.0], device=device) if has_sinks else None
    scene.check(parts, Scoring(scale=0.25, window=window, softcap=softcap, sinks=sinks))


@pytest.mark.parametrize("block_size", [12, 64])
def test_blocks_of_any_size(device: str, block_size: int) -> None:
    scene = Scene(device, [130, 35, 64], heads=4, kv_heads=2, d=16, kind=torch.bfloat16, block_size=block_size)
    scene.check(2, Scoring(scale=0.25))


def test_a_token_has_the_same_bits_in_any_company(device: str) -> None:
    scene = Scene(device, [200, 5, 130], heads=4, kv_heads=2, d=16, kind=torch.bfloat16)
    whole, _ = scene.attended(4, Scoring(scale=0.25), is_single=True)
    every = scene.tiles(4)
    for token in range(3):
        alone = replace(every, count=torch.where(every.first == token, every.count, 0))
        scene.tiles = lambda parts, tiles=alone: tiles  # type: ignore[method-assign]
        out, _ = scene.attended(4, Scoring(scale=0.25), is_single=True)
        assert torch.equal(out[token], whole[token])


def test_only_steps_of_single_tokens_attend_at_once(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1)
    expected = generate(reference(path), prompts(1, (9,)), 3)
    counts = {"qk_write": 0, "single_attention": 0}
    for name in counts:
        plain = getattr(model, name)

        def counted(*args: object, name: str = name, plain: Callable[..., object] = plain, **options: object) -> object:
            counts[name] += 1
            return plain(*args, **options)

        monkeypatch.setattr(model, name, counted)
    executor = cuda(path, device)
    assert generate(executor, prompts(1, (9,)), 3) == expected
    executor.shutdown()
    assert counts == {"qk_write": 1, "single_attention": 2}


def test_where_the_kernel_does_not_compile_two_launches_say_the_same(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1)
    monkeypatch.setattr(launching, "_failed", {})

    def fails(*args: object) -> None:
        raise PTXASError("ptxas fatal: unknown option")

    monkeypatch.setattr(attention_single, "_launch", fails)
    executor = cuda(path, device)
    assert generate(executor, prompts(1, (9,)), 3) == generate(reference(path), prompts(1, (9,)), 3)
    executor.shutdown()
    assert launching.failed_kernels() == ("attention_single",)
    monkeypatch.setattr(launching, "_failed", {})
