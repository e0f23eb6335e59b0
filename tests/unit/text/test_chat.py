"""Templates: what they see, what they refuse, and how their text becomes tokens."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import InvalidRequest, TemplateFailed, UnsupportedModel, UnsupportedParameter
from headrace.core.text_files import TextFiles
from headrace.text import ChatTemplate, Tokenizer, encode_chat, find_template_faults, load_chat_template, load_tokenizer
from headrace.text.template_sandbox import compile_template, render

HI = [{"role": "user", "content": "Hi"}]
ALTERNATING = """{{ bos_token }}{% for message in messages %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant') }}
{% endif %}
[{{ message.role }}]{{ message.content }}
{%- endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""


def template(source: str, **named: str) -> ChatTemplate:
    return ChatTemplate({"default": source, **named}, special_tokens={"bos_token": "<|begin|>"}, where="a test")


@pytest.fixture
def tokenizer(byte_level_metadata: dict[str, object]) -> Tokenizer:
    return load_tokenizer(TextFiles(gguf_metadata={**byte_level_metadata, "tokenizer.ggml.add_bos_token": True}))


def test_the_default_models_template_adds_its_system_turn_and_asks_for_an_answer(
    smollm2_files: TextFiles, smollm2: Tokenizer
) -> None:
    chat = load_chat_template(smollm2_files)
    assert chat is not None
    prompt = encode_chat(smollm2, chat, HI)
    assert prompt.text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.token_ids == smollm2.encode(prompt.text, add_special=False)
    assert find_template_faults(smollm2, chat) == ()


def test_blocks_leave_no_blank_lines() -> None:
    text = "{% for m in messages %}\n  {% if m.content %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    assert template(text).render([*HI, *HI]) == "Hi\nHi\n"


def test_a_templates_own_words_reach_the_caller() -> None:
    with pytest.raises(TemplateFailed, match="refuses these messages: Conversation roles must alternate") as caught:
        template(ALTERNATING).render([*HI, *HI])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].missing.deeper }}",
        "{{ 1 / 0 }}",
        "{{ messages[9] + 'x' }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include 'file' %}",
        "{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 99999 }}",
        "{% for i in range(30) %}{{ 'x' * 1000000 }}{% endfor %}",
    ],
)
def test_what_a_template_may_not_or_cannot_do_fails_this_request_only(source: str) -> None:
    with pytest.raises(TemplateFailed, match="cannot render these messages"):
        template(source).render(HI)


def test_a_rendering_that_takes_too_long_is_ended() -> None:
    seconds = iter(range(100))
    with pytest.raises(TemplateFailed, match="rendering took longer than 5 s"):
        render(compile_template("{% for i in range(50) %}{{ i }}{% endfor %}", "a test"), {}, lambda: next(seconds))


def test_a_template_that_does_not_compile_is_named_with_its_line() -> None:
    with pytest.raises(UnsupportedModel, match=r"a test \('default'\) does not compile: line 2.*--chat-template"):
        template("\n{% if %}")


def test_what_templates_of_the_field_use_is_there() -> None:
    source = (
        "{% generation %}{{ tools[0] | tojson }}{% endgeneration %}|{{ {'é': '<'} | tojson(indent=1) }}|"
        "{{ strftime_now('%%') }}|{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    assert template(source).render(HI, tools=[{"name": "f"}]) == '{"name": "f"}|{\n "é": "<"\n}|%|01'


def test_variables_reach_the_template_and_reserved_ones_do_not() -> None:
    assert template("{{ enable_thinking }}").render(HI, enable_thinking=False) == "False"
    with pytest.raises(InvalidRequest, match="'range' is set by the server"):
        template("").render(HI, range=1)


def test_tools_choose_their_own_template() -> None:
    chat = template("plain", tool_use="tools")
    assert (chat.render(HI), chat.render(HI, tools=[{"name": "f"}])) == ("plain", "tools")
    with pytest.raises(InvalidRequest, match="'tools' is no list of objects"):
        chat.render(HI, tools="f")


def test_parts_of_text_are_joined_and_others_refused() -> None:
    parts: list[Any] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = template("{{ messages[0].content }}")
    assert chat.render([{"role": "user", "content": parts}]) == "ab"
    with pytest.raises(UnsupportedParameter, match=r"'messages\[0\]\.content\[2\]' is of type 'image_url'"):
        chat.render([{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {}}]}])


def test_tool_calls_reach_the_template_as_objects() -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    chat = template("{{ messages[0].tool_calls[0].function.arguments.x }}{{ messages[0].content }}")
    assert chat.render([{"role": "assistant", "content": None, "tool_calls": [call]}]) == "1"


@pytest.mark.parametrize("message", [{"content": "x"}, {"role": 3}, "hello"])
def test_a_message_without_a_role_is_refused_by_place(message: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"'messages\[1\]' has no role"):
        template("").render([*HI, message])


def test_too_many_messages_are_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidRequest, match="10,001 entries; at most 10,000"):
        template("").render(HI * 10_001)


def test_bos_is_written_once_whether_the_template_writes_it_or_not(tokenizer: Tokenizer) -> None:
    with_bos, without = template(ALTERNATING), template("{{ messages[0].content }}")
    assert encode_chat(tokenizer, with_bos, HI).token_ids.count(259) == 1
    assert encode_chat(tokenizer, without, HI).token_ids == tokenizer.encode("Hi", add_special=True)


def test_oddities_of_a_template_are_said(tokenizer: Tokenizer) -> None:
    assert find_template_faults(tokenizer, template(ALTERNATING)) == (
        "template and tokenizer both begin a text with <|begin|>; it is written once",
    )
    assert find_template_faults(tokenizer, template("{{ bos_token }}{{ bos_token }}x")) == (
        "template and tokenizer both begin a text with <|begin|>; it is written once",
        "the chat template ignores add_generation_prompt: the model is not told that its turn begins and may go on "
        "with the user's",
    )
    (finding,) = find_template_faults(tokenizer, template("{{ raise_exception('system first') }}"))
    assert finding.endswith("system first")


def test_chat_with_a_base_model_says_what_to_do(tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateFailed, match=r"no chat template; use /v1/completions.*--chat-template FILE"):
        encode_chat(tokenizer, None, HI)
