"""Paged attention, split or not, against the reference: groups, head sizes, windows, sinks, soft caps, chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headrace.ops import reference
from headrace.ops.cuda import attention as attention_module
from headrace.ops.cuda.attention import HEAD_SIZES, Scoring, Tiles, attention

BLOCK_SIZE = 16


class Scene:
    """Rows of given (computed before, tokens now), their keys in shuffled blocks of a pool."""

    def __init__(
        self,
        device: str,
        rows: list[tuple[int, int]],
        *,
        heads: int,
        kv_heads: int,
        d: int,
        kind: torch.dtype,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        random = np.random.RandomState(len(rows) + d)
        needed = [-(-(before + now) // block_size) for before, now in rows]
        order = random.permutation(sum(needed) + 3).astype(np.int32)
        width = max(needed)
        self.tables = np.full((len(rows), width), -1, np.int32)
        for row, count in enumerate(needed):
            self.tables[row, :count], order = order[:count], order[count:]
        self.rows, self.heads, self.kind, self.device = rows, heads, kind, device
        self.row_starts = np.cumsum([0] + [now for _, now in rows]).astype(np.int32)
        self.positions = np.concatenate([np.arange(b, b + n) for b, n in rows]).astype(np.int32)
        pool = random.standard_normal((sum(needed) + 3, 2, kv_heads, block_size, d)).astype(np.float32)
        self.cache = torch.from_numpy(pool).to(kind).to(device)
        self.q = torch.from_numpy(random.standard_normal((len(self.positions), heads * d)).astype(np.float32))
        self.q = self.q.to(kind).to(device)

    def tiles(self, size: int, num_parts: int) -> Tiles:
        lines = [
            (row, int(self.row_starts[row]) + at, min(size, now - at))
            for row, (_, now) in enumerate(self.rows)
            for at in range(0, now, size)
        ]
        lines.append((0, 0, 0))  # a padded tile does nothing
        rows, first, count = (
            torch.tensor(part, dtype=torch.int32, device=self.device) for part in zip(*lines, strict=True)
        )
        return Tiles(rows=rows, first=first, count=count, size=size, num_parts=num_parts)

    def attend(self, tiles: Tiles, scoring: Scoring) -> torch.Tensor:
        out = torch.full_like(self.q, torch.nan)
        tables = torch.from_numpy(np.maximum(self.tables, 0)).to(self.device)
        positions = torch.from_numpy(self.positions).to(self.device)
        attention(self.q, out, self.cache, tables, tiles, positions, scoring)
        return out

    def expected(self, scoring: Scoring) -> np.ndarray:
        cache = np.ascontiguousarray(self.cache.float().cpu().numpy().transpose(1, 0, 3, 2, 4))
        return reference.attention(
            self.q.float().cpu().numpy(),
            cache,
            self.tables,
            self.row_starts,
            self.positions,
            scale=scoring.scale,
            window=scoring.window,
            softcap=scoring.softcap,
            sinks=None if scoring.sinks is None else scoring.sinks.cpu().numpy(),
        )


def close(out: torch.Tensor, expected: np.ndarray, kind: torch.dtype) -> None:
    error = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[kind]
    np.testing.assert_allclose(out.float().cpu().numpy(), expected, rtol=error, atol=error)


@pytest.mark.parametrize("d", [16, *HEAD_SIZES])
def test_decode_in_parts_matches_the_reference_at_every_head_size(device: str, d: int) -> None:
    scene = Scene(device, [(0, 1), (300, 1), (130, 1)], heads=4, kv_heads=2, d=d, kind=torch.float32)
    scoring = Scoring(scale=d**-0.5)
    close(scene.attend(scene.tiles(1, 3), scoring), scene.expected(scoring), torch.float32)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (7, 1)])
def test_half_precision_and_any_grouping_of_heads(device: str, kind: torch.dtype, heads: int, kv_heads: int) -> None:
    scene = Scene(device, [(90, 1), (10, 20)], heads=heads, kv_heads=kv_heads, d=32, kind=kind)
    scoring = Scoring(scale=0.2)
    for size, parts in ((1, 2), (8, 1)):
        close(scene.attend(scene.tiles(size, parts), scoring), scene.expected(scoring), kind)


@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks", "size", "parts"),
    [
        (7, 5.0, True, 1, 1), (7, 5.0, True, 1, 4), (7, 5.0, True, 16, 1),  # all at once, in every shape
        (None, None, True, 1, 4), (40, None, False, 16, 1), (500, None, True, 1, 4), (None, 2.0, False, 16, 1),
    ],
)  # fmt: skip
def test_windows_caps_and_sinks(
    device: str, window: int | None, softcap: float | None, has_sinks: bool, size: int, parts: int
) -> None:
    scene = Scene(device, [(280, 3), (0, 37), (150, 1)], heads=4, kv_heads=2, d=16, kind=torch.float32)
    sinks = torch.tensor([-1.0, 0.5, 2.0, 9.0], device=device) if has_sinks else None
    scoring = Scoring(scale=0.25, window=window, softcap=softcap, sinks=sinks)
    close(scene.attend(scene.tiles(size, parts), scoring), scene.expected(scoring), torch.float32)


@pytest.mark.parametrize("block_size", [8, 12, 32, 64, 128])
def test_blocks_of_any_size(device: str, block_size: int) -> None:
    scene = Scene(
        device, [(130, 1), (70, 9)], heads=4, kv_heads=2, d=16, kind=torch.bfloat16, block_size=block_size
    )  # fmt: skip
    unused = np.setdiff1d(np.arange(len(scene.cache)), scene.tables)
    scene.cache[unused] = torch.nan
    scene.cache[scene.tables[0, 130 // block_size], :, :, 131 % block_size :] = torch.nan
    for size, parts in ((1, 2), (8, 1)):
        scoring = Scoring(scale=0.25)
        close(scene.attend(scene.tiles(size, parts), scoring), scene.expected(scoring), torch.bfloat16)


def test_tiles_of_one_token_give_the_same_bits_in_any_company(device: str) -> None:
    scoring = Scoring(scale=0.25)
    scene = Scene(device, [(200, 4), (5, 9)], heads=4, kv_heads=2, d=16, kind=torch.bfloat16)
    whole = scene.attend(scene.tiles(1, 4), scoring)
    for token in (0, 3, 5, 12):
        tiles = scene.tiles(1, 4)
        kept = torch.where(tiles.first == token, tiles.count, 0)
        alone = Tiles(rows=tiles.rows, first=tiles.first, count=kept, size=1, num_parts=4)
        assert torch.equal(scene.attend(alone, scoring)[token], whole[token])


@pytest.mark.parametrize("has_reach", [False, True])
@pytest.mark.parametrize(
    "sizes", [(2, 2), (2, 1), (4, 4), (4, 1)], ids=lambda sizes: f"{sizes[0]} and {sizes[1]} bytes"
)
def test_a_warps_share_of_a_turn_is_as_much_as_a_product_takes(sizes: tuple[int, int], has_reach: bool) -> None:
    for block_m in (16, 32, 64, 128):
        for block_d in (16, 64, 128, 256):
            shape = attention_module.launch_shape(block_m, block_d, *sizes, has_reach=has_reach)
            assert shape.block_n // shape.ways >= 16  # Triton before 3.7 compiles no products of fewer
