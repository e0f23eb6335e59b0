"""Finds a model's chat template: in a Hugging Face directory, in GGUF metadata, or in a file the operator names.

Invariant: the operator's file wins over the model's; among a directory's files the newest way of writing wins.
Callers: `app/` at start. A base model has none: `load_chat_template` returns None and only chat requests fail.

    chat_template.jinja, additional_chat_templates/NAME.jinja  >  chat_template.json  >  tokenizer_config.json
    tokenizer.chat_template, tokenizer.chat_template.NAME
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headrace.core.errors import ConfigError, ModelFileBroken
from headrace.core.text_files import TextFiles
from headrace.text.chat import ChatTemplate
from headrace.text.directory_tokenizer import token_texts
from headrace.text.gguf_vocabulary import token_texts_by_name
from headrace.text.json_file import read_object

_GGUF_KEY = "tokenizer.chat_template"


def load_chat_template(
    files: TextFiles, *, override: Path | None = None, special_tokens: Mapping[str, str] | None = None
) -> ChatTemplate | None:
    """Return the checkpoint's template, None if it has none.

    override        a Jinja file to use instead
    special_tokens  the tokenizer's, where it is loaded already: reading them again costs a large vocabulary's decoding
    Raises UnsupportedModel for a template that does not compile, ConfigError for a file that cannot be read.
    """
    sources = _from_override(override) if override is not None else _sources(files)
    if "default" not in sources:
        return None
    where = str(override or files.directory or "the GGUF metadata")
    texts = _special_texts(files) if special_tokens is None else special_tokens
    return ChatTemplate(sources, special_tokens=texts, where=where)


def _from_override(path: Path) -> dict[str, str]:
    try:
        return {"default": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chat template '{path}' cannot be read: {error}", param="chat_template") from error


def _sources(files: TextFiles) -> dict[str, str]:
    if files.directory is not None:
        return _from_directory(files.directory)
    return _from_metadata(files.gguf_metadata or {})


def _from_directory(directory: Path) -> dict[str, str]:
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        named = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        return {path.stem: _read(path) for path in named} | {"default": _read(jinja)}
    for name in ("chat_template.json", "tokenizer_config.json"):
        sources = _from_value(read_object(directory / name).get("chat_template"))
        if sources:
            return sources
    return {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileBroken(f"the chat template '{path}' is not UTF-8: {error}") from error


def _from_value(value: object) -> dict[str, str]:
    """Read a template given as one string, or as a list of objects with name and template."""
    if isinstance(value, str):
        return {"default": value}
    sources: dict[str, str] = {}
    for entry in value if isinstance(value, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
            sources[entry["name"]] = entry["template"]
    return sources


def _from_metadata(metadata: Mapping[str, object]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for key in metadata:
        name = "default" if key == _GGUF_KEY else key.removeprefix(f"{_GGUF_KEY}.")
        if key == _GGUF_KEY or name != key:
            value = metadata[key]
            if isinstance(value, str):
                sources[name] = value
    return sources


def _special_texts(files: TextFiles) -> dict[str, str]:
    if files.directory is not None:
        return token_texts(files.directory)
    return token_texts_by_name(files.gguf_metadata or {})
