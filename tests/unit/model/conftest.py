"""Writers of small model files, by hand, so that tests can also write broken ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GGUF_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}


def gguf_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type and value: bool, int (u32), float (f32), str, or a list of one of these."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + gguf_string(value)
        case list():
            items = [gguf_value(item) for item in value]
            return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)
    raise TypeError(value)


def gguf_bytes(
    metadata: dict[str, Any],
    tensors: dict[str, tuple[str | int, tuple[int, ...], bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file; tensors are name → (type, row-major shape, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(gguf_string(key) + gguf_value(value) for key, value in metadata.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        number = GGUF_TYPES[kind] if isinstance(kind, str) else kind
        head += gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, len(data))
        data += raw
    return head + b"\0" * (-len(head) % alignment) + data


def safetensors_bytes(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file; tensors are name → (type, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def llama_metadata(**more: Any) -> dict[str, Any]:
    """A llama of 2 layers, 4 query heads, 2 key-value heads of 8 channels."""
    return {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("<f4")


def f32(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", array.shape, array.tobytes()


@pytest.fixture(scope="session")
def files() -> Any:
    """This module, for tests to call its writers."""
    import types

    return types.SimpleNamespace(
        gguf=gguf_bytes, safetensors=safetensors_bytes, llama_metadata=llama_metadata, floats=floats, f32=f32
    )


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes bytes under a name in the test's own directory."""

    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write
