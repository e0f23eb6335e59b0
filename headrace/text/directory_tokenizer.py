"""A tokenizer out of a Hugging Face directory: `tokenizer.json`, and the files beside it that name special tokens.

Invariant: ids and text are those of `tokenizer.json`; the other files only say which tokens begin, end and pad.
Callers: `loading.py`. Source: the file formats of `tokenizers` and `transformers`.

    tokenizer.json           vocabulary, cutting, spelling, what is added around a text
    tokenizer_config.json    names of special tokens; add_bos_token for Llama-like classes
    special_tokens_map.json  names of special tokens, in older checkpoints
    generation_config.json   end tokens; config.json where it has none
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import tokenizers

from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.text.json_file import read_object
from headrace.text.piece_bytes import PieceSpelling
from headrace.text.special_tokens import END_OF_TURN_TEXTS, SpecialTokens
from headrace.text.tokenizer import Tokenizer

_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# For these classes `transformers` builds what surrounds a text from add_bos_token and add_eos_token.
_FLAGGED_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")


def directory_tokenizer(directory: Path) -> Tokenizer:
    """Build the tokenizer of a Hugging Face directory.

    Raises ModelFileBroken for files that are missing or broken, UnsupportedModel for a spelling that is not served.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        beside = " ('tokenizer.model' alone is not read)" if (directory / "tokenizer.model").exists() else ""
        raise ModelFileBroken(f"'{path}' is missing{beside}; save the tokenizer with transformers' save_pretrained")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelFileBroken(f"'{path}' cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    special = _special(directory, backend)
    kind = type(backend.model).__name__
    return Tokenizer(backend, spelling=_spelling(backend, path), special=special, origin=f"{kind} from tokenizer.json")


def token_texts(directory: Path) -> dict[str, str]:
    """Return what the config files call the special tokens: bos_token → "<s>"."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = read_object(directory / name)
        for key in _TOKEN_KEYS:
            text = _token_text(values.get(key))
            if text is not None:
                found[key] = text
    return found


def _token_text(value: object) -> str | None:
    """Read a token that is written as a string or as an object with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special(directory: Path, backend: tokenizers.Tokenizer) -> SpecialTokens:
    texts = token_texts(directory)
    added = backend.get_added_tokens_decoder()
    special = {i: token.content for i, token in added.items() if token.special}
    bos_text, eos_text = texts.get("bos_token"), texts.get("eos_token")
    bos = None if bos_text is None else backend.token_to_id(bos_text)
    eos = None if eos_text is None else backend.token_to_id(eos_text)
    configured = _configured_ends(directory)
    ends = dict.fromkeys(
        [
            *configured,
            *(() if eos is None else (eos,)),
            *(i for i, text in sorted(special.items()) if text in END_OF_TURN_TEXTS),
        ]
    )
    prefix, suffix = _surroundings(backend)
    config = read_object(directory / "tokenizer_config.json")
    if str(config.get("tokenizer_class")).removesuffix("Fast") in _FLAGGED_CLASSES:
        prefix = _flagged(config.get("add_bos_token"), bos, prefix)
        suffix = _flagged(config.get("add_eos_token"), eos, suffix)
    named = [i for i in (bos, *ends) if i is not None]
    return SpecialTokens(
        bos=bos, ends=tuple(ends), ids=frozenset([*special, *named]), prefix=prefix, suffix=suffix, texts=texts
    )


def _flagged(flag: object, token: int | None, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(flag, bool) or (flag and token is None):
        return otherwise
    return (token,) if flag and token is not None else ()


def _configured_ends(directory: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        value = read_object(directory / name).get("eos_token_id")
        ids = [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
        if ids:
            return ids
    return []


def _surroundings(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the vocabulary's own template puts before and after a text, by encoding one letter."""
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    extra = len(full) - len(plain)
    for before in range(extra + 1):
        if full[before : before + len(plain)] == plain:
            return tuple(full[:before]), tuple(full[before + len(plain) :])
    return (), ()


def _spelling(backend: tokenizers.Tokenizer, path: Path) -> PieceSpelling:
    """Read the spelling of bytes off the decoder. Raises UnsupportedModel naming the decoder."""
    if backend.decoder is None:
        raise UnsupportedModel(f"'{path}' has no decoder, so tokens have no text")
    decoder = msgspec.json.decode(backend.decoder.__getstate__(), type=dict[str, object])
    steps = list(_steps(decoder))
    kinds = [str(step["type"]) for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceSpelling(scheme="byte_level")
    known = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    if not set(kinds) <= known or not {"Replace", "Metaspace"} & set(kinds):
        raise UnsupportedModel(
            f"'{path}' has decoder {' + '.join(kinds)}; served: ByteLevel, {', '.join(sorted(known))}"
        )
    strips = any(
        step["type"] == "Strip" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return PieceSpelling(scheme="sentencepiece", has_byte_pieces="ByteFallback" in kinds, strips_first=strips)


def _steps(decoder: Mapping[str, object]) -> Iterable[Mapping[str, object]]:
    nested = decoder.get("decoders")
    if decoder.get("type") != "Sequence" or not isinstance(nested, list):
        yield decoder
        return
    for step in nested:
        yield from _steps(step)
