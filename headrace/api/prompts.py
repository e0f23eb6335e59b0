"""From messages and texts to token ids: template and tokenizer, off the event loop when it would show.

Invariant: nothing here runs longer than about a millisecond on the event loop; longer inputs go to a thread.
Chat prompts begin with one BOS where the model wants one, whether the template writes it or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from headrace.api.body import refuse_unsupported
from headrace.api.openai_types import Message
from headrace.api.served import ServedModel
from headrace.core.errors import InvalidRequest, UnsupportedParameter
from headrace.text import encode_rendered

T = TypeVar("T")

_INLINE_CHARS = 2048
_SERVER_VARIABLES = {"self", "messages", "tools", "add_generation_prompt"}  # parameters of `ChatTemplate.render`


async def off_loop(num_chars: int, work: Callable[[], T]) -> T:
    """Run `work` here if its input is small, else in a thread."""
    if num_chars <= _INLINE_CHARS:
        return work()
    return await asyncio.to_thread(work)


async def encode_text(model: ServedModel, text: str, *, add_special: bool) -> list[int]:
    """Tokenize a prompt."""
    return await off_loop(len(text), lambda: model.tokenizer.encode(text, add_special=add_special))


async def encode_chat(
    model: ServedModel,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    continue_final: bool,
    add_special: bool,
    variables: Mapping[str, object],
) -> list[int]:
    """Put messages through the model's template and tokenize what comes out.

    Raises InvalidRequest for a model without template, UnsupportedParameter for content other than text, and
    TemplateFailed when the template refuses the messages.
    """
    template = model.template
    if template is None:
        raise InvalidRequest(
            f"'{model.name}' is a base model without a chat template; use /v1/completions", param="messages"
        )
    if not messages:
        raise InvalidRequest("'messages' is empty; send at least one message", param="messages")
    if continue_final and add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message excludes add_generation_prompt; set add_generation_prompt to false",
            param="continue_final_message",
        )
    if clash := _SERVER_VARIABLES & variables.keys():
        raise InvalidRequest(
            f"template variable '{min(clash)}' is set by the server; leave it out of chat_template_kwargs",
            param="chat_template_kwargs",
        )
    turns = [_turn(i, message) for i, message in enumerate(messages)]

    def run() -> list[int]:
        text = template.render(turns, tools=None, add_generation_prompt=add_generation_prompt, **variables)
        if continue_final:
            text = _cut_after(text, turns[-1]["content"])
        if add_special:
            return model.tokenizer.encode(text, add_special=True)
        return encode_rendered(model.tokenizer, text)

    return await off_loop(sum(len(turn["content"]) for turn in turns), run)


def _turn(i: int, message: Message) -> dict[str, str]:
    where = f"messages[{i}]."
    if message.role in ("tool", "function"):
        raise UnsupportedParameter(
            f"{where}role '{message.role}' is not supported by this server", param=where + "role"
        )
    refuse_unsupported(message, where)
    turn = {"role": "system" if message.role == "developer" else message.role, "content": _text(where, message)}
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _text(where: str, message: Message) -> str:
    if message.content is None:
        if message.role != "assistant":
            raise InvalidRequest(f"'{where}content' is missing", param=where + "content")
        return ""
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for j, part in enumerate(message.content):
        if part.type != "text":
            raise UnsupportedParameter(
                f"'{where}content[{j}]' is of type '{part.type}'; this model takes text only",
                param=f"{where}content[{j}].type",
            )
        texts.append(part.text or "")
    return "".join(texts)


def _cut_after(text: str, last: str) -> str:
    """Drop what the template wrote after the last message's content, so that the model goes on inside it."""
    start = text.rfind(last.strip())
    return text if start < 0 else text[: start + len(last.strip())]
