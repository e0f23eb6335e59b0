"""What KV blocks below the pool are kept under, and the name that answers give their weights, follow every byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.app import tiers
from headrace.app.hardware import detect
from headrace.app.loading import open_model
from headrace.app.pulling import ensure_pulled
from headrace.core.settings import EngineSettings, Settings
from headrace.executor.packed_cache import fingerprint
from headrace.testing.checkpoints import write_checkpoint


def names_of(model: Path, cache: Path) -> tuple[bytes, str]:
    """Return the format of blocks in the places below, and the weights' name."""
    engine = EngineSettings(backend="reference", kv_memory_mib=8)
    settings = Settings(models=(f"file:{model}",), engine=engine, cache_dir=str(cache))
    opened = open_model(ensure_pulled(settings, settings.models[0]), settings, detect())
    try:
        origin = tiers.Origin(
            engine=engine, program=opened.program, checkpoint=opened.checkpoint, cache_directory=cache
        )
        return tiers._format(opened.plan, origin), fingerprint(opened.program, opened.checkpoint, "auto")
    finally:
        opened.close()


def flip_a_weight(model: Path) -> None:
    (file,) = model.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def change_a_constant(model: Path) -> None:
    config = model / "config.json"
    text = config.read_text()
    assert '"rms_norm_eps"' in text
    config.write_text(text.replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))


@pytest.mark.parametrize("change", [flip_a_weight, change_a_constant])
def test_one_changed_byte_of_weights_or_config_gives_other_names(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    model = write_checkpoint(tmp_path / "model", "llama")
    before = names_of(model, tmp_path)
    assert names_of(model, tmp_path) == before
    change(model)
    after = names_of(model, tmp_path)
    assert after[0] != before[0]
    assert after[1] != before[1]
