"""Where a template is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.core.errors import ConfigError
from headrace.core.text_files import TextFiles
from headrace.text import ChatTemplate, load_chat_template

HI = [{"role": "user", "content": "Hi"}]


def rendered(chat: ChatTemplate | None, **arguments: object) -> str:
    assert chat is not None
    return chat.render(HI, **arguments)


def from_directory(directory: Path, config: object) -> ChatTemplate | None:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_chat_template(TextFiles(directory=directory))


def test_one_template_in_the_config_knows_the_special_tokens(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}!", "bos_token": {"content": "<s>", "lstrip": False}}
    assert rendered(from_directory(tmp_path, config)) == "<s>!"


def test_named_templates_in_the_config(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    chat = from_directory(tmp_path, {"chat_template": named})
    assert (rendered(chat), rendered(chat, tools=[{}])) == ("plain", "tools")


def test_a_file_of_its_own_wins_over_the_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    chat = from_directory(tmp_path, {"chat_template": "config"})
    assert (rendered(chat), rendered(chat, tools=[{}])) == ("file", "tools")


def test_a_processors_template_is_read(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert rendered(from_directory(tmp_path, {})) == "processor"


def test_gguf_metadata_holds_templates_by_name(byte_level_metadata: dict[str, object]) -> None:
    metadata = {
        **byte_level_metadata,
        "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_templates": ["tool_use"],
    }
    chat = load_chat_template(TextFiles(gguf_metadata=metadata))
    assert (rendered(chat), rendered(chat, tools=[{}])) == ("<|begin|><|im_end|>", "tools")


def test_a_base_model_has_none(tmp_path: Path, byte_level_metadata: dict[str, object]) -> None:
    assert from_directory(tmp_path, {"bos_token": "<s>"}) is None
    assert load_chat_template(TextFiles(gguf_metadata=byte_level_metadata)) is None


def test_the_operators_file_wins(tmp_path: Path, byte_level_metadata: dict[str, object]) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("mine")
    metadata = {**byte_level_metadata, "tokenizer.chat_template": "theirs"}
    assert rendered(load_chat_template(TextFiles(gguf_metadata=metadata), override=mine)) == "mine"
    with pytest.raises(ConfigError, match=r"gone\.jinja' cannot be read"):
        load_chat_template(TextFiles(gguf_metadata=metadata), override=tmp_path / "gone.jinja")
