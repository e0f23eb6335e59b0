"""Models of a known shape with random weights, for speed alone: `random:llama-1b` where a benchmark takes a model.

Owns CACHE/random/NAME: an HF directory in bf16, written once by a name that is put in place when all is there. The text
such a model writes means nothing; its bytes, products and steps are those of the real thing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import numpy as np

from headrace.core.errors import UnknownModel
from headrace.core.settings import Settings
from headrace.testing.checkpoints import Config, tensor_shapes, write_directory

PREFIX = "random:"
SHAPES: dict[str, Config] = {
    "llama-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
}
_BLOCK = 1 << 22  # numbers drawn; tensors take them again and again from different places


def with_random_model(settings: Settings) -> Settings:
    """Return settings whose first model, if its name starts with `random:`, is made and named by its path.

    Raises UnknownModel with the names there are. Cost: the model's bytes on disk, once.
    """
    first = settings.first_model
    if not first.startswith(PREFIX):
        return settings
    name = first.removeprefix(PREFIX)
    if name not in SHAPES:
        known = ", ".join(PREFIX + shape for shape in SHAPES)
        raise UnknownModel(f"no random model '{first}'; there are: {known}", param="model")
    directory = Path(settings.cache_dir).expanduser() / "random" / name
    if not directory.exists():
        _write(directory, SHAPES[name])
    return msgspec.structs.replace(settings, models=(f"file:{directory}", *settings.models[1:]))


def _write(directory: Path, overrides: Config) -> None:
    """Write beside the final name and rename when all is there."""
    partial = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    try:
        config = write_directory(partial, "llama", overrides)
        _write_weights(partial / "model.safetensors", config)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(path: Path, config: Config) -> None:
    """Write bf16 weights with a spread of 1 / sqrt(inputs), tensor by tensor."""
    draws = np.random.default_rng(0).standard_normal(_BLOCK, np.float32)
    shapes = tensor_shapes(config)
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for index, (_, shape) in enumerate(shapes):
            left = int(np.prod(shape))
            values = np.ones(_BLOCK, np.float32) if len(shape) == 1 else np.roll(draws, 977 * index) / shape[-1] ** 0.5
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            while left > 0:
                file.write(bits[:left].tobytes())
                left -= _BLOCK
