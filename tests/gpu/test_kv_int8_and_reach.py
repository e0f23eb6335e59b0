"""What `qk_write` leaves, `attention` reads: int8 keys and values, and rows that see sinks and a window alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headrace.core.request import Reach
from headrace.ops import kv_values, reference
from headrace.ops.cuda import launching
from headrace.ops.cuda.attention import Scoring, Tiles, TokenReach, attention
from headrace.ops.cuda.rope import Rotation, qk_write

HEADS, KV_HEADS, BLOCK_SIZE = 4, 2, 16
NONE = Reach(window=0)


class Scene:
    """Rows of (computed before, tokens now, reach). Random q, k and v of every token, written by the kernel."""

    def __init__(
        self, device: str, rows: list[tuple[int, int, Reach]], *, d: int, is_int8: bool, window: int | None = None
    ) -> None:
        random = np.random.RandomState(d + len(rows))
        self.device, self.rows, self.d, self.is_int8, self.window = device, rows, d, is_int8, window
        lengths = [before + now for before, now, _ in rows]
        needed = [-(-length // BLOCK_SIZE) for length in lengths]
        order = random.permutation(sum(needed) + 1)
        self.num_blocks = len(order)
        self.tables = np.zeros((len(rows), max(needed)), np.int32)
        for row, count in enumerate(needed):
            self.tables[row, :count], order = order[:count], order[count:]
        self.positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
        owner = np.repeat(np.arange(len(rows)), lengths)
        blocks = self.tables[owner, self.positions // BLOCK_SIZE]
        self.slots = (blocks * BLOCK_SIZE + self.positions % BLOCK_SIZE).astype(np.int32)
        self.windows = np.array([rows[i][2].window for i in owner], np.int32)
        self.num_sinks = np.array([rows[i][2].num_sinks for i in owner], np.int32)
        self.qkv = random.standard_normal((len(owner), (HEADS + 2 * KV_HEADS) * d)).astype(np.float32)
        self.qkv[:, d * HEADS] *= 9  # a channel that sticks out, as keys have them
        self.inv_freq = (10000.0 ** -(np.arange(0, d, 2) / d)).astype(np.float32)
        starts = np.cumsum([0, *lengths])
        self.now = np.concatenate([np.arange(starts[i] + b, starts[i + 1]) for i, (b, _, _) in enumerate(rows)])

    def sent(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def written(self, kind: torch.dtype) -> tuple[torch.Tensor, TokenReach]:
        """Write every token's K and V, earlier ones by the plain op; return queries and reaches of those of now."""
        self.cache, self.scales = made_cache(self.device, self.num_blocks, self.d, self.is_int8, kind)
        rotation = Rotation(inv_freq=self.sent(self.inv_freq), scale=1.1, q_norm=None, k_norm=None, eps=1e-6)
        earlier = np.setdiff1d(np.arange(len(self.slots)), self.now)
        for tokens, is_plain in ((earlier, True), (self.now, False)):
            q, turned = (
                torch.full((len(tokens), HEADS * self.d), torch.nan, dtype=kind, device=self.device) for _ in "qt"
            )
            sent = [
                self.sent(array[tokens])
                for array in (self.qkv, self.slots, self.positions, self.windows, self.num_sinks)
            ]
            reach = TokenReach(windows=sent[3], num_sinks=sent[4], turned=turned)
            with pytest.MonkeyPatch.context() as patch:
                if is_plain:
                    patch.setattr(launching, "can_launch", lambda _: False)
                qk_write(
                    sent[0].to(kind), q, self.cache, sent[1], sent[2], rotation, scales=self.scales, reach=reach
                )  # fmt: skip
        return q, reach

    def attended(
        self, *, size: int, parts: int, is_merged: bool = True, kind: torch.dtype = torch.float32
    ) -> np.ndarray:
        q, reach = self.written(kind)
        lines, first = [], 0
        for row, (_, now, _) in enumerate(self.rows):
            lines += [(row, first + at, min(size, now - at)) for at in range(0, now, size)]
            first += now
        tiles = [self.sent(np.array(part, np.int32)) for part in zip(*lines, strict=True)]
        out = torch.full((first, HEADS * self.d), torch.nan, dtype=kind, device=self.device)
        attention(
            q, out, self.cache, self.sent(self.tables),
            Tiles(rows=tiles[0], first=tiles[1], count=tiles[2], size=size, num_parts=parts),
            self.sent(self.positions[self.now]), Scoring(scale=self.d**-0.5, window=self.window),
            scales=self.scales, is_merged=is_merged, reach=reach,
        )  # fmt: skip
        return out.float().cpu().numpy()

    def expected(self) -> np.ndarray:
        shape = kv_values.KvShape(BLOCK_SIZE, KV_HEADS, self.d)
        self.known = kv_values.zeros("int8" if self.is_int8 else "fp32", num_blocks=self.num_blocks, shape=shape)
        q = reference.qk_write(
            self.qkv, self.known, self.slots.astype(np.int64), self.positions,
            num_heads=HEADS, inv_freq=self.inv_freq, rope_scale=1.1, q_norm=None, k_norm=None,
        )  # fmt: skip
        row_starts = np.cumsum([0, *[now for _, now, _ in self.rows]]).astype(np.int32)
        paths = [reference.Path(reach if reach.window else None, 0) for _, _, reach in self.rows]
        return reference.attention(
            q[self.now], self.known, self.tables, row_starts, self.positions[self.now],
            scale=self.d**-0.5, window=self.window, paths=paths, inv_freq=self.inv_freq,
        )  # fmt: skip


def made_cache(
    device: str, num_blocks: int, d: int, is_int8: bool, kind: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a pool as engines have it: a head's numbers of a block, and behind them its scales."""
    if not is_int8:
        return torch.full((num_blocks, 2, KV_HEADS, BLOCK_SIZE, d), torch.nan, dtype=kind, device=device), None
    pool = torch.full((num_blocks, 2, KV_HEADS, BLOCK_SIZE * (d + 2)), 127, dtype=torch.int8, device=device)
    values = pool[..., : BLOCK_SIZE * d].unflatten(-1, (BLOCK_SIZE, d))
    return values, pool[..., BLOCK_SIZE * d :].view(torch.bfloat16)


WIDE = Reach(window=70, num_sinks=4)
ROWS = [(150, 1, WIDE), (50, 14, Reach(window=40, num_sinks=20)), (30, 1, NONE), (90, 2, Reach(window=9))]


@pytest.mark.parametrize("d", [16, 64, 80, 128])
def test_int8_is_written_and_read_as_the_cpu_backends_do(device: str, d: int) -> None:
    scene = Scene(device, [(140, 1, NONE), (0, 9, NONE)], d=d, is_int8=True)
    for size, parts in ((1, 2), (8, 1)):
        np.testing.assert_allclose(scene.attended(size=size, parts=parts), scene.expected(), rtol=2e-3, atol=2e-3)
    assert scene.scales is not None
    at = (slice(None), scene.slots // BLOCK_SIZE, scene.slots % BLOCK_SIZE)
    values = scene.cache.cpu().numpy().transpose(1, 0, 3, 2, 4)[at]
    scales = scene.scales.float().cpu().numpy().transpose(1, 0, 3, 2)[at]
    known = scene.known[at]
    np.testing.assert_allclose(scales, known["scale"], rtol=1e-2)
    # Angles and sums differ in the last bit, which now and then moves a number over the edge of a step.
    wrong = values.astype(np.int32) - known["value"]
    assert np.abs(wrong).max() <= 1
    assert (wrong != 0).mean() < 2e-3


@pytest.mark.parametrize(("is_int8", "window"), [(False, None), (True, None), (False, 8), (False, 60)])
def test_a_row_sees_its_sinks_and_its_window(device: str, is_int8: bool, window: int | None) -> None:
    scene = Scene(device, ROWS, d=16, is_int8=is_int8, window=window)
    error = 2e-3 if is_int8 else 3e-5
    for size, parts in ((1, 3), (16, 1)):
        np.testing.assert_allclose(scene.attended(size=size, parts=parts), scene.expected(), rtol=error, atol=error)


def test_parts_are_added_to_the_same_bits_by_the_last_to_arrive_and_by_a_launch_of_its_own(device: str) -> None:
    scene = Scene(device, [(400, 1, NONE), (150, 1, WIDE), (5, 1, NONE)], d=16, is_int8=False)
    once = scene.attended(size=1, parts=4)
    assert np.array_equal(once, scene.attended(size=1, parts=4))  # the counters are as they were
    assert np.array_equal(once, scene.attended(size=1, parts=4, is_merged=False))


def test_int8_is_read_by_queries_in_half_precision(device: str) -> None:
    scene = Scene(device, [(70, 1, NONE), (0, 9, NONE)], d=32, is_int8=True)
    for size, parts in ((1, 2), (8, 1)):
        found = scene.attended(size=size, parts=parts, kind=torch.bfloat16)
        np.testing.assert_allclose(found, scene.expected(), rtol=4e-2, atol=4e-2)


def test_a_head_that_is_not_finite_spoils_its_own_row_alone(device: str) -> None:
    scene = Scene(device, [(20, 1, NONE), (20, 1, NONE)], d=16, is_int8=True)
    scene.qkv[7, HEADS * 16 + 3] = np.inf
    out = scene.attended(size=1, parts=1)
    assert np.isnan(out[0]).any()
    np.testing.assert_allclose(out[1], scene.expected()[1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("is_int8", [False, True])
def test_the_plain_ops_compute_the_same(device: str, is_int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "can_launch", lambda _: False)
    for window in (None, 60):
        scene = Scene(device, ROWS, d=16, is_int8=is_int8, window=window)
        error = 2e-3 if is_int8 else 3e-5
        np.testing.assert_allclose(scene.attended(size=16, parts=1), scene.expected(), rtol=error, atol=error)
