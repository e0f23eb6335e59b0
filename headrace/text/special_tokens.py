"""Which tokens begin and end texts, and what they are called in chat templates.

Pure values. Callers: the two loaders and `chat.py`.
Source: the end-of-turn tokens of the model families' own chat templates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# A chat model ends its turn with one of these even where its config names another end token.
END_OF_TURN_TEXTS = frozenset(
    {
        "<|im_end|>",  # ChatML: Qwen, SmolLM
        "<|eot_id|>",  # Llama 3
        "<|eom_id|>",  # Llama 3, before a tool's answer
        "<end_of_turn>",  # Gemma
        "<|end|>",  # Phi 3
        "<|endoftext|>",  # GPT-2 and its descendants
        "<|end_of_text|>",  # Llama 3, Granite
        "<|eot|>",  # Llama 4
        "<EOT>",  # Code Llama
        "<end_of_utterance>",  # SmolVLM
        "<｜end▁of▁sentence｜>",  # DeepSeek
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Special ids of a vocabulary.

    ends     ids that end an answer, the configured one first
    ids      ids that are no text: skipped when a text is shown
    prefix   ids put before a text, suffix after it, when special tokens are asked for
    texts    what templates call them: bos_token, eos_token, …
    """

    bos: int | None = None
    ends: tuple[int, ...] = ()
    ids: frozenset[int] = frozenset()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
