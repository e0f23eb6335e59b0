"""Conversations through the chat template of a model that runs here.

Owns nothing. Invariant: what the model cannot read is refused by name; caching hints and earlier thoughts are not words
of the prompt and are left out, because prefixes are shared without being asked to be and thoughts belong to their turn.
"""

from __future__ import annotations

from headrace.api.openai_types import Message
from headrace.api.prompts import encode_chat
from headrace.api.served import ServedModel
from headrace.core import conversation as core
from headrace.core.conversation import Conversation, ForeignPart, ImagePart, ReasoningPart, TextPart
from headrace.core.errors import UnsupportedParameter

_DROPPED = ("redacted_thinking",)


async def encode_conversation(model: ServedModel, conversation: Conversation) -> list[int]:
    """Return the prompt's tokens. Raises what `encode_chat` raises, UnsupportedParameter for what is not text."""
    if conversation.tools:
        raise UnsupportedParameter(f"'tools' is not supported by '{model.name}'; leave it out", param="tools")
    if conversation.reasoning is not None and conversation.reasoning.is_enabled:
        raise UnsupportedParameter(f"'thinking' is not supported by '{model.name}'; leave it out", param="thinking")
    messages = [Message(role=message.role, content=_text(model, message)) for message in conversation.messages]
    return await encode_chat(
        model,
        messages,
        add_generation_prompt=not conversation.continues_last,
        continue_final=conversation.continues_last,
        add_special=False,
        variables={},
    )


def _text(model: ServedModel, message: core.Message) -> str:
    for part in message.parts:
        if isinstance(part, TextPart | ReasoningPart) or (isinstance(part, ForeignPart) and part.kind in _DROPPED):
            continue
        kind = part.kind if isinstance(part, ForeignPart) else "image" if isinstance(part, ImagePart) else "tool"
        raise UnsupportedParameter(
            f"a part of type '{kind}' in 'messages' is not supported by '{model.name}', which takes text only",
            param="messages",
        )
    return message.text
