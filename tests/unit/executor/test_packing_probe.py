"""The key of packed files follows what packing writes: other bytes of any kind and source are another digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.executor.native import problem as native_problem
from headrace.executor.weights_pack import load_weights
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.native.library import Pool
from headrace.ops.native.linear import PackedMatrix, Source, WeightFormat, WeightShape
from headrace.testing.checkpoints import write_checkpoint

pytestmark = pytest.mark.skipif(native_problem() is not None, reason="the native library is not built here")

SHAPES = [
    WeightShape(format=WeightFormat.F32, n=7, k=5),
    WeightShape(format=WeightFormat.I8R, n=900, k=64, group=256),
    WeightShape(format=WeightFormat.I4G, n=64, k=32, group=32, asymmetric=True),
    WeightShape(format=WeightFormat.I4G, n=64, k=32, group=32, interleaved=True),
]


def digest() -> str:
    from headrace.executor.packing_probe import layout_digest

    with Pool(2) as pool:
        return layout_digest(pool, SHAPES)


def change_packing(monkeypatch: pytest.MonkeyPatch, kind: WeightFormat, source: Source) -> None:
    """Stand in for a build whose packing of one kind from one source turns one bit of the last byte around."""
    pack = PackedMatrix.pack

    def other(self: PackedMatrix, pool: Pool, given: Source, *args: Any, **kwargs: Any) -> int:
        end = pack(self, pool, given, *args, **kwargs)
        if (self.shape.format, given) == (kind, source):
            self.data[-1] ^= 1
        return end

    monkeypatch.setattr(PackedMatrix, "pack", other)


def test_the_same_build_gives_the_same_digest() -> None:
    assert digest() == digest()


@pytest.mark.parametrize(
    ("kind", "source"),
    [(WeightFormat.F32, Source.F32), (WeightFormat.I8R, Source.BF16), (WeightFormat.I4G, Source.Q4_K)],
)
def test_packing_that_writes_other_bytes_is_another_digest(
    monkeypatch: pytest.MonkeyPatch, kind: WeightFormat, source: Source
) -> None:
    before = digest()
    change_packing(monkeypatch, kind, source)
    assert digest() != before


def test_files_of_a_build_that_packs_otherwise_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_checkpoint(tmp_path / "model", "llama")

    def was_cached() -> bool:
        with open_checkpoint(model) as checkpoint, Pool(1) as pool:  # type: ignore[attr-defined]
            program = build_program(checkpoint.config)
            return load_weights(program, checkpoint, pool, quantization="int8", cache_dir=tmp_path).was_cached

    assert [was_cached(), was_cached()] == [False, True]
    change_packing(monkeypatch, WeightFormat.I8R, Source.F32)
    assert [was_cached(), was_cached()] == [False, True]
