"""`load_tokenizer`: from the files of a checkpoint, whatever their kind, to its `Tokenizer`."""

from __future__ import annotations

from headrace.core.errors import ConfigError
from headrace.core.text_files import TextFiles
from headrace.text.directory_tokenizer import directory_tokenizer
from headrace.text.gguf_tokenizer import gguf_tokenizer
from headrace.text.tokenizer import Tokenizer


def load_tokenizer(files: TextFiles) -> Tokenizer:
    """Build the tokenizer of a checkpoint.

    Raises ModelFileBroken for files that are missing or broken, UnsupportedModel for a kind that is not served.
    """
    if files.directory is not None:
        return directory_tokenizer(files.directory)
    if files.gguf_metadata is not None:
        return gguf_tokenizer(files.gguf_metadata, files.cache_directory)
    raise ConfigError("this checkpoint names no tokenizer: neither a directory nor GGUF metadata")
