"""Chat templates: messages in, the prompt text out that the model was trained on.

Owns the compiled templates of one model. Immutable and safe from any thread.
Invariant: a chat prompt begins with exactly one BOS where the model wants one, whether the template writes it or not;
the end token that some vocabularies add to texts is never added, because an answer follows.
Callers: `api/`, `app.LLM`. Source: the template files of `transformers`, `tokenizer.chat_template` of GGUF.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.core.errors import InvalidRequest, TemplateFailed, UnsupportedParameter
from headrace.text.template_sandbox import compile_template, render
from headrace.text.tokenizer import Tokenizer

Message = Mapping[str, object]
MAX_MESSAGES = 10_000
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "range"})


class ChatTemplate:
    """One model's templates. `sources` are Jinja texts by name; "default" is used unless tools ask for "tool_use"."""

    def __init__(self, sources: Mapping[str, str], *, special_tokens: Mapping[str, str], where: str) -> None:
        self._sources = dict(sources)
        self._compiled = {name: compile_template(source, f"{where} ('{name}')") for name, source in sources.items()}
        self._special_tokens = dict(special_tokens)

    @property
    def source(self) -> str:
        """The Jinja text of the default template."""
        return self._sources["default"]

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: object = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Return the prompt text. `variables` reach the template under their names, such as enable_thinking.

        `tools` is a list of JSON objects, passed through as they are.

        Raises TemplateFailed with the template's own words, UnsupportedParameter for content that is not text,
        InvalidRequest for messages that are none.
        """
        reserved = _RESERVED & variables.keys()
        if reserved:
            name = min(reserved)
            raise InvalidRequest(f"template variable '{name}' is set by the server; leave it out", param=name)
        if len(messages) > MAX_MESSAGES:
            raise InvalidRequest(
                f"'messages' has {len(messages):,} entries; at most {MAX_MESSAGES:,} are served", param="messages"
            )
        if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(t, Mapping) for t in tools)):
            raise InvalidRequest("'tools' is no list of objects", param="tools")
        name = "tool_use" if tools and "tool_use" in self._compiled else "default"
        values: dict[str, object] = {
            **self._special_tokens,
            **variables,
            "messages": [_plain(message, i) for i, message in enumerate(messages)],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render(self._compiled[name], values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A chat put into text and ids."""

    text: str
    token_ids: list[int]


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    *,
    tools: object = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, object] | None = None,
) -> ChatPrompt:
    """Render `messages` and encode the text, with one BOS where the model wants one.

    Raises what `ChatTemplate.render` raises, and TemplateFailed for a model without a template.
    """
    if template is None:
        raise TemplateFailed(
            "this model has no chat template; use /v1/completions, or give one with --chat-template FILE",
            param="messages",
        )
    text = template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **(variables or {}))
    return ChatPrompt(text=text, token_ids=encode_rendered(tokenizer, text))


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode what a template rendered: BOS is put before it only if the template has not written it."""
    ids = tokenizer.encode(text, add_special=False)
    prefix = list(tokenizer.prefix_ids)
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def find_template_faults(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[str, ...]:
    """Return what is odd about a template, one sentence each, by rendering a short chat. Empty when all is well."""
    sample: list[Message] = [{"role": "user", "content": "Hi"}]
    try:
        text = template.render(sample)
        unprompted = template.render(sample, add_generation_prompt=False)
    except TemplateFailed as error:
        return (f"the chat template does not render a single user message: {error.message}",)
    findings = []
    prefix = list(tokenizer.prefix_ids)
    ids = tokenizer.encode(text, add_special=False)
    if prefix and ids[: len(prefix)] == prefix:
        findings.append(
            f"template and tokenizer both begin a text with {tokenizer.token_text(prefix[0])}; it is written once"
        )
        ids = ids[len(prefix) :]
    if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
        findings.append(f"the chat template writes {tokenizer.token_text(tokenizer.bos_id)} twice")
    if text == unprompted:
        findings.append(
            "the chat template ignores add_generation_prompt: the model is not told that its turn begins "
            "and may go on with the user's"
        )
    return tuple(findings)


def _plain(message: Message, i: int) -> dict[str, object]:
    """Return the message with its content as one string and its tool calls' arguments as objects."""
    where = f"messages[{i}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"'{where}' has no role; give it role and content", param=where)
    plain = dict(message)
    plain["content"] = _text(message.get("content"), f"{where}.content")
    calls = message.get("tool_calls")
    if calls is None:
        plain.pop("tool_calls", None)
    elif isinstance(calls, Sequence) and not isinstance(calls, str):
        plain["tool_calls"] = [_parsed_call(call) for call in calls]
    return plain


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"'{where}' is {type(content).__name__}; send a string or a list of parts", param=where)
    texts = []
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text":
            raise UnsupportedParameter(
                f"'{where}[{j}]' is of type '{kind}'; this model reads parts of type 'text' only", param=f"{where}[{j}]"
            )
        if not isinstance(text, str):
            raise InvalidRequest(f"'{where}[{j}].text' is missing", param=f"{where}[{j}].text")
        texts.append(text)
    return "".join(texts)


def _parsed_call(call: object) -> object:
    """Give templates the arguments of a call as an object: the wire carries them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call
