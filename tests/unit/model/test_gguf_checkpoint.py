"""A GGUF file as a checkpoint: HF names, HF row order, HF meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core.errors import ConfigError, ModelFileBroken, UnsupportedModel
from headrace.model import open_checkpoint
from headrace.model.gguf_checkpoint import GgufCheckpoint
from headrace.quant import Format

Save = Callable[[str, bytes], Path]


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head as GGUF converters of llama store them: the halves of each rotation side by side."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama_file(files: Any, extra: dict[str, Any] | None = None, **metadata: Any) -> bytes:
    tensors = {"token_embd.weight": files.f32(files.floats(40, 32)), **(extra or {})}
    data: bytes = files.gguf(files.llama_metadata(**metadata), tensors)
    return data


def test_q_and_k_of_llama_come_out_in_half_split_order(files: Any, save: Save) -> None:
    q, k, v = files.floats(32, 32, seed=1), files.floats(16, 32, seed=2), files.floats(16, 32, seed=3)
    bias = files.floats(32, seed=4)
    data = llama_file(
        files,
        {
            "blk.0.attn_q.weight": files.f32(np.ascontiguousarray(interleaved(q, 4))),
            "blk.0.attn_k.weight": files.f32(np.ascontiguousarray(interleaved(k, 2))),
            "blk.0.attn_v.weight": files.f32(v),
            "blk.0.attn_q.bias": files.f32(np.ascontiguousarray(interleaved(bias, 4))),
        },
    )
    with GgufCheckpoint(save("m.gguf", data)) as checkpoint:
        prefix = "model.layers.0.self_attn."
        assert np.array_equal(checkpoint.tensor(f"{prefix}q_proj.weight").to_float(), q)
        assert np.array_equal(checkpoint.tensor(f"{prefix}k_proj.weight").to_float(), k)
        assert np.array_equal(checkpoint.tensor(f"{prefix}v_proj.weight").to_float(), v)
        assert np.array_equal(checkpoint.tensor(f"{prefix}q_proj.bias").to_float(), bias)
        assert checkpoint.config.qkv_bias


def test_rows_of_other_families_stay_where_they_are(files: Any, save: Save) -> None:
    q = files.floats(32, 32)
    metadata = {key.replace("llama.", "qwen2."): value for key, value in files.llama_metadata().items()}
    metadata["general.architecture"] = "qwen2"
    tensors = {"token_embd.weight": files.f32(files.floats(40, 32)), "blk.1.attn_q.weight": files.f32(q)}
    with GgufCheckpoint(save("m.gguf", files.gguf(metadata, tensors))) as checkpoint:
        assert np.array_equal(checkpoint.tensor("model.layers.1.self_attn.q_proj.weight").to_float(), q)


def test_an_own_output_head_unties_the_embeddings(files: Any, save: Save) -> None:
    head = {"output.weight": files.f32(files.floats(40, 32))}
    assert open_checkpoint(save("tied.gguf", llama_file(files))).config.tie_embeddings
    untied = open_checkpoint(save("untied.gguf", llama_file(files, head)))
    assert not untied.config.tie_embeddings
    assert "lm_head.weight" in set(untied.names())


def test_frequency_factors_become_part_of_the_rope_config(files: Any, save: Save) -> None:
    factors = np.array([1, 1, 4, 8], "<f4")
    checkpoint = GgufCheckpoint(save("m.gguf", llama_file(files, {"rope_freqs.weight": files.f32(factors)})))
    assert checkpoint.config.rope.freq_factors == (1.0, 1.0, 4.0, 8.0)
    assert "rope_freqs.weight" not in set(checkpoint.names())


def test_frequency_factors_of_the_wrong_number_are_refused(files: Any, save: Save) -> None:
    factors = np.ones(3, "<f4")
    with pytest.raises(ModelFileBroken, match=r"rope_freqs.weight has 3 factors, 4"):
        GgufCheckpoint(save("m.gguf", llama_file(files, {"rope_freqs.weight": files.f32(factors)})))


def test_a_tensor_that_nobody_knows_is_refused_by_name(files: Any, save: Save) -> None:
    extra = {"blk.0.attn_qkv.weight": files.f32(files.floats(4, 32))}
    with pytest.raises(UnsupportedModel, match=r"'blk.0.attn_qkv.weight' has no place in family 'llama'"):
        GgufCheckpoint(save("m.gguf", llama_file(files, extra)))


def test_a_missing_tensor_is_named(files: Any, save: Save) -> None:
    checkpoint = GgufCheckpoint(save("m.gguf", llama_file(files)))
    with pytest.raises(ModelFileBroken, match=r"'model.norm.weight' is missing"):
        checkpoint.tensor("model.norm.weight")


def test_a_file_without_embeddings_is_refused(files: Any, save: Save) -> None:
    with pytest.raises(ModelFileBroken, match=r"token_embd.weight"):
        GgufCheckpoint(save("m.gguf", files.gguf(files.llama_metadata(), {})))


def test_one_part_of_a_split_model_is_refused(files: Any, save: Save) -> None:
    with pytest.raises(UnsupportedModel, match="one of 3 parts"):
        GgufCheckpoint(save("m.gguf", llama_file(files, **{"split.count": 3})))


def test_the_text_floor_gets_tokenizer_and_general_keys_only(files: Any, save: Save) -> None:
    path = save("m.gguf", llama_file(files, **{"tokenizer.ggml.tokens": ["a", "b"]}))
    text_files = open_checkpoint(path, cache_directory=path.parent).text_files
    assert text_files.gguf_metadata is not None
    assert text_files.gguf_metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    assert not [key for key in text_files.gguf_metadata if not key.startswith(("tokenizer.", "general."))]
    assert text_files.cache_directory == path.parent


def test_a_directory_with_one_gguf_file_opens_it(files: Any, save: Save) -> None:
    path = save("one/m.gguf", llama_file(files))
    assert open_checkpoint(path.parent).config.num_layers == 2
    save("one/n.gguf", llama_file(files))
    with pytest.raises(ConfigError, match=r"holds 2 GGUF files; name one of them: m.gguf, n.gguf"):
        open_checkpoint(path.parent)


def test_what_is_no_model_says_what_it_is(save: Save, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"neither config.json nor a .gguf"):
        open_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="give its directory"):
        open_checkpoint(save("model.safetensors", b"x"))
    with pytest.raises(ModelFileBroken, match="not a GGUF file"):
        open_checkpoint(save("page.gguf", b"<html>"))


def test_smollm2_opens_with_its_published_sizes(smollm2_path: Path) -> None:
    with GgufCheckpoint(smollm2_path) as checkpoint:
        config = checkpoint.config
        assert (config.family, config.num_layers, config.num_heads, config.num_kv_heads) == ("llama", 30, 9, 3)
        assert (config.vocab_size, config.hidden_size, config.head_dim) == (49152, 576, 64)
        assert config.tie_embeddings
        assert config.eos_token_ids == (2,)
        q = checkpoint.tensor("model.layers.29.self_attn.q_proj.weight")
        assert (q.format, q.shape) == (Format.Q4_1, (576, 576))
        assert 0.01 < np.abs(q.to_float()).mean() < 1
        assert len(list(checkpoint.names())) == 272


def test_gemma3_opens_with_its_two_kinds_of_layers(gemma3_path: Path) -> None:
    with GgufCheckpoint(gemma3_path) as checkpoint:
        config = checkpoint.config
        assert config.rope.theta == 1e6
        assert config.rope_local is not None
        assert config.rope_local.theta == 1e4
        assert config.window == 512
        assert [i for i, windowed in enumerate(config.windowed_layers) if not windowed] == [5, 11, 17]
        assert config.embed_scale == pytest.approx(640**0.5)
        assert config.norm_offset == 0.0
        tokens = checkpoint.text_files.gguf_metadata["tokenizer.ggml.tokens"]  # type: ignore[index]
        assert len(tokens) == config.vocab_size == 262144
        norm = checkpoint.tensor("model.layers.0.pre_feedforward_layernorm.weight")
        assert norm.to_float().shape == (640,)
