"""How byte-level BPE vocabularies cut text into words before merging, by the name GGUF gives it.

Pure data and one function. A name maps to a chain of patterns: each is applied inside the pieces that the one before
left, a match is a piece of its own, and so is the text between two matches.
Invariant: a name that is not in the table is refused, because the wrong cut gives wrong tokens without any other sign.
Callers: `gguf_tokenizer.py`. Source: the `tokenizer.json` of each family; the names are llama.cpp's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from headrace.core.errors import UnsupportedModel

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SEED = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
# A word changes at the step from lower to upper case; letters without case belong to both.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_CJK = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+"
# Letters that have a case, as the DeepSeek LLM vocabulary lists them in hexadecimal: some scripts that have one are
# left out, so \p{Lu}\p{Ll}\p{Lt} is not the same. Numbers, because editors compose and reorder such characters.
_CASED_RANGES = (
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c "
    "38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b "
    "1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 "
    "1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 "
    "2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b "
    "2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 "
    "fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df "
    "1e900-1e943"
)
_CASED_LETTERS = "".join("-".join(rf"\x{{{end}}}" for end in ends.split("-")) for ends in _CASED_RANGES.split())
_PUNCTUATION = r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+"
_HAN_AND_KANA = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreKind:
    """One way of cutting.

    patterns        Oniguruma expressions, outermost first
    adds_bos        a text begins with BOS unless the file says otherwise
    ignores_merges  a word that is itself a token is taken whole, whatever the merges say
    is_nfc          text is put into Unicode's composed form first
    """

    patterns: tuple[str, ...]
    adds_bos: bool = False
    ignores_merges: bool = False
    is_nfc: bool = False


_LLAMA3_KIND = PreKind(patterns=(_LLAMA3,), adds_bos=True, ignores_merges=True)
_LLAMA3_CUT = PreKind(patterns=(_LLAMA3,))
_QWEN2_KIND = PreKind(patterns=(_QWEN2,), is_nfc=True)
_QWEN2_CUT = PreKind(patterns=(_QWEN2,))
_GPT2_KIND = PreKind(patterns=(_GPT2,))
_DIGITS_KIND = PreKind(patterns=(r"\p{N}", _GPT2))
_GPT4O_KIND = PreKind(patterns=(_GPT4O,))
_BLOOM_PATTERN = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BLOOM_KIND = PreKind(patterns=(_BLOOM_PATTERN,))

KINDS: dict[str, PreKind] = {
    "default": PreKind(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2_KIND,
    "phi-2": _GPT2_KIND,
    "mpt": _GPT2_KIND,
    "olmo": _GPT2_KIND,
    "jais": _GPT2_KIND,
    "mellum": _GPT2_KIND,
    "gigachat": _GPT2_KIND,
    "exaone4": _GPT2_KIND,
    "trillion": _GPT2_KIND,
    "granite-docling": _GPT2_KIND,
    "smollm": _DIGITS_KIND,
    "starcoder": _DIGITS_KIND,
    "refact": _DIGITS_KIND,
    "command-r": _DIGITS_KIND,
    "codeshell": _DIGITS_KIND,
    "exaone": _DIGITS_KIND,
    "minerva-7b": _DIGITS_KIND,
    "llama-bpe": _LLAMA3_KIND,
    "llama3": _LLAMA3_KIND,
    "llama-v3": _LLAMA3_KIND,
    "falcon3": _LLAMA3_KIND,
    "dbrx": _LLAMA3_CUT,
    "smaug-bpe": _LLAMA3_CUT,
    "glm4": _LLAMA3_CUT,
    "chatglm-bpe": _LLAMA3_CUT,
    "qwen2": _QWEN2_KIND,
    "deepseek-r1-qwen": _QWEN2_KIND,
    "stablelm2": _QWEN2_CUT,
    "megrez": _QWEN2_CUT,
    "hunyuan": _QWEN2_CUT,
    "grok-2": _QWEN2_CUT,
    "qwen35": PreKind(patterns=(_QWEN35,), is_nfc=True),
    "seed-coder": PreKind(patterns=(_SEED,)),
    "tekken": PreKind(patterns=(_TEKKEN,), adds_bos=True, ignores_merges=True),
    "gpt-4o": _GPT4O_KIND,
    "llama4": _GPT4O_KIND,
    "minimax-m2": _GPT4O_KIND,
    "falcon": PreKind(patterns=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "bloom": _BLOOM_KIND,
    "gpt3-finnish": _BLOOM_KIND,
    "poro-chat": _BLOOM_KIND,
    "viking": PreKind(patterns=(_BLOOM_PATTERN, r"\p{N}")),
    "deepseek-llm": PreKind(patterns=(r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _PUNCTUATION, r"\s+$", _CJK, r"\p{N}+")),
    "deepseek-coder": PreKind(patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3": PreKind(patterns=(r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
    "hunyuan-dense": PreKind(patterns=(r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
}


def pre_kind(name: str) -> PreKind:
    """Return the kind called `name`. Raises UnsupportedModel listing the known ones."""
    kind = KINDS.get(name)
    if kind is None:
        raise UnsupportedModel(
            f"pre-tokenizer '{name}' (tokenizer.ggml.pre) is not known, and another would give wrong tokens; "
            f"known: {', '.join(sorted(KINDS))}"
        )
    return kind


def build_pre_tokenizer(kind: PreKind) -> PreTokenizer:
    """Return the chain of cuts, ending in the spelling of bytes as characters."""
    cuts: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in kind.patterns]
    chain: PreTokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
    return chain
