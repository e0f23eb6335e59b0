"""Safetensors, alone and in shards: views of the right bytes, and broken files that say where they are broken."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core.errors import ConfigError, ModelFileBroken, UnsupportedModel
from headrace.model import open_checkpoint
from headrace.model.safetensors import SafetensorsFile, SafetensorsSet
from headrace.quant import Format

Save = Callable[[str, bytes], Path]
INDEX = "model.safetensors.index.json"


def one_tensor(shape: list[int], offsets: list[int], length: int = 16) -> bytes:
    return raw_file({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, bytes(length))


def raw_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_each_float_type_decodes_to_its_values(files: Any, save: Save) -> None:
    values = np.array([[1.0, -2.5, 0.125], [3.0, 0.0, -0.5]], "<f4")
    bf16 = (values.view("<u4") >> 16).astype("<u2").tobytes()
    stored = {
        "a": ("F32", (2, 3), values.tobytes()),
        "b": ("F16", (2, 3), values.astype("<f2").tobytes()),
        "c": ("BF16", (2, 3), bf16),
        "d": ("F32", (3,), values[0].tobytes()),
    }
    file = SafetensorsFile(save("m.safetensors", files.safetensors(stored)))
    for name, format in [("a", Format.F32), ("b", Format.F16), ("c", Format.BF16)]:
        tensor = file.tensor(name)
        assert tensor.format is format
        assert np.array_equal(tensor.to_float(), values)
    assert np.array_equal(file.tensor("d").to_float(), values[0])


def test_weights_are_views_and_not_copies(files: Any, save: Save) -> None:
    stored = {"w": ("BF16", (1024, 2048), bytes(1024 * 2048 * 2))}
    path = save("m.safetensors", files.safetensors(stored))
    tracemalloc.start()
    try:
        tensor = SafetensorsFile(path).tensor("w")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tensor.data.nbytes == 4 << 20
    assert peak < 1 << 18


def test_a_view_stays_readable_after_close(files: Any, save: Save) -> None:
    file = SafetensorsFile(save("m.safetensors", files.safetensors({"w": files.f32(files.floats(4))})))
    tensor = file.tensor("w")
    file.close()
    file.close()
    assert np.array_equal(tensor.to_float(), files.floats(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x01\x02", "header of .* bytes at offset 0"),
        (struct.pack("<Q", 1 << 40) + b"{}", r"header of 1,099,511,627,776 bytes at offset 0 does not fit"),
        (raw_file(b"{" * 100000), "header at offset 8 is not valid"),
        (raw_file(b"[]"), "header at offset 8 is not valid"),
        (raw_file(b'{"w": 3}'), "header at offset 8 is not valid"),
        (raw_file(b'{"\xff": {}}'), "header at offset 8 is not valid"),
        (one_tensor([4], [0, 16], 15), "tensor 'w' at offset .*truncated"),
        (one_tensor([4], [0, 12]), r"has 12 bytes; F32 \(4,\) needs 16"),
        (one_tensor([-4], [0, 16]), "impossible shape"),
        (one_tensor([1 << 40, 1 << 40], [0, 16]), "impossible shape"),
        (one_tensor([4], [-16, 0]), "tensor 'w'"),
        (one_tensor([4], [16, 0]), "tensor 'w'"),
    ],
)  # fmt: skip
def test_a_broken_file_says_where(save: Save, data: bytes, message: str) -> None:
    with pytest.raises(ModelFileBroken, match=message):
        SafetensorsFile(save("m.safetensors", data))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_flipped_byte_is_read_or_refused_but_never_crashes(files: Any, save: Save, data: st.DataObject) -> None:
    whole = bytearray(files.safetensors({"w": files.f32(files.floats(3, 4)), "b": files.f32(files.floats(4))}))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        file = SafetensorsFile(save("m.safetensors", bytes(whole)))
        for name in file.names():
            values = file.tensor(name).to_float()
            assert values.nbytes <= len(whole) * 2
    except (ModelFileBroken, UnsupportedModel):
        return


def test_a_type_that_is_not_served_is_named_only_when_it_is_wanted(files: Any, save: Save) -> None:
    stored = {"ids": ("I64", (2,), bytes(16)), "w": files.f32(files.floats(2))}
    file = SafetensorsFile(save("m.safetensors", files.safetensors(stored)))
    assert file.tensor("w").shape == (2,)
    with pytest.raises(UnsupportedModel, match="'ids' has type I64"):
        file.tensor("ids")


def sharded(files: Any, save: Save, weight_map: dict[str, str] | None = None) -> Path:
    save("m/model-00001-of-00002.safetensors", files.safetensors({"a": files.f32(files.floats(2, 3))}))
    save("m/model-00002-of-00002.safetensors", files.safetensors({"b": files.f32(files.floats(3))}))
    weight_map = weight_map or {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return save(f"m/{INDEX}", json.dumps({"metadata": {}, "weight_map": weight_map}).encode()).parent


def test_shards_are_one_set_of_tensors(files: Any, save: Save) -> None:
    tensors = SafetensorsSet(sharded(files, save))
    assert set(tensors.names()) == {"a", "b"}
    assert np.array_equal(tensors.tensor("b").to_float(), files.floats(3))
    with pytest.raises(ModelFileBroken, match="tensor 'c' is in none of the files"):
        tensors.tensor("c")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..", "x.bin", ""]
)
def test_an_index_cannot_lead_out_of_its_directory(files: Any, save: Save, shard: str) -> None:
    with pytest.raises(ModelFileBroken, match=r"tensor 'a' is said to be in .* not a file of this directory"):
        SafetensorsSet(sharded(files, save, {"a": shard}))


def test_a_missing_shard_and_a_missing_tensor_are_named(files: Any, save: Save) -> None:
    with pytest.raises(ModelFileBroken, match=r"shard 'model-3.safetensors' of .* is missing"):
        SafetensorsSet(sharded(files, save, {"a": "model-3.safetensors"}))
    with pytest.raises(ModelFileBroken, match="tensor 'z' is missing"):
        SafetensorsSet(sharded(files, save, {"z": "model-00001-of-00002.safetensors"}))


def test_an_index_that_is_not_json_is_refused(files: Any, save: Save) -> None:
    directory = sharded(files, save)
    save(f"m/{INDEX}", b"<html>")
    with pytest.raises(ModelFileBroken, match="not a valid index"):
        SafetensorsSet(directory)


def test_weights_without_an_index_must_be_one_file(files: Any, save: Save) -> None:
    directory = sharded(files, save)
    (directory / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"holds 2 .safetensors files but no"):
        SafetensorsSet(directory)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "eos_token_id": 2,
}


def test_a_directory_opens_as_a_checkpoint(files: Any, save: Save) -> None:
    embedding = files.floats(20, 16)
    stored = {
        "model.embed_tokens.weight": files.f32(embedding),
        "model.layers.0.self_attn.rotary_emb.inv_freq": files.f32(files.floats(4)),
    }
    save("m/config.json", json.dumps(CONFIG).encode())
    save("m/generation_config.json", b'{"eos_token_id": [2, 5]}')
    path = save("m/model.safetensors", files.safetensors(stored)).parent
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.names()) == ["model.embed_tokens.weight"]
    assert np.array_equal(checkpoint.tensor("model.embed_tokens.weight").to_float(), embedding)
    assert checkpoint.config.tie_embeddings
    assert checkpoint.config.eos_token_ids == (2, 5)
    assert checkpoint.text_files.directory == path
    with pytest.raises(ModelFileBroken, match=r"'model.norm.weight' is missing"):
        checkpoint.tensor("model.norm.weight")
    checkpoint.close()
    checkpoint.close()


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_half_of_a_multimodal_model_has_plain_names(files: Any, save: Save, prefix: str) -> None:
    stored = {
        f"{prefix}embed_tokens.weight": files.f32(files.floats(20, 16)),
        "vision_tower.x.weight": ("F32", (1, 1, 1, 1), bytes(4)),
    }
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": CONFIG}
    save("m/config.json", json.dumps(config).encode())
    checkpoint = open_checkpoint(save("m/model.safetensors", files.safetensors(stored)).parent)
    assert list(checkpoint.names()) == ["model.embed_tokens.weight"]
    assert checkpoint.tensor("model.embed_tokens.weight").name == "model.embed_tokens.weight"


def test_an_architecture_that_is_not_served_says_so_before_weights_are_looked_for(save: Save) -> None:
    path = save("m/config.json", b'{"architectures": ["T5ForConditionalGeneration"]}')
    with pytest.raises(UnsupportedModel, match="T5ForConditionalGeneration"):
        open_checkpoint(path.parent)


def test_a_config_that_is_not_json_is_refused(save: Save) -> None:
    with pytest.raises(ModelFileBroken, match=r"config.json is not a JSON object"):
        open_checkpoint(save("m/config.json", b"{").parent)
