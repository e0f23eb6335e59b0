"""Where chat templates run: a Jinja sandbox with what model authors expect, and a bound on text, work and time.

A template is foreign code. It sees the messages and nothing else: no underscored attribute, no change to a value from
outside, no import, no file.
Invariant: `render` ends, with text of at most `MAX_CHARS` or with TemplateFailed carrying the template's own words.
Jinja has no unbounded loop; loops over `range` share one budget a rendering, so nesting does not multiply it.
Callers: `chat.py`. Source: the environment that `transformers.apply_chat_template` gives templates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.core.errors import TemplateFailed, UnsupportedModel

MAX_CHARS = 16 << 20
MAX_STEPS = 100_000
MAX_SECONDS = 5.0


class _Refusal(TemplateError):
    """The template called raise_exception."""


class _GenerationBlock(Extension):
    """{% generation %} … {% endgeneration %} marks what to train on; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # Jinja reads it from the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with repetition and powers kept small: `"x" * 10**9` is one step but a gigabyte."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [value for value in (left, right) if isinstance(value, int | float)]
        lengths = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
        if operator == "**" and any(abs(value) > 1024 for value in numbers):
            raise SecurityError(f"{left!r} ** {right!r} is too large; operands end at 1024")
        if lengths and numbers and lengths[0] * numbers[0] > MAX_CHARS:
            raise SecurityError(f"repeating {lengths[0]:,} items {numbers[0]:,} times is too large")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is: Jinja's own filter escapes what HTML would misread, a prompt must not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _new_environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock])
    environment.filters["tojson"] = _tojson
    del environment.globals["lipsum"]  # filler text of any length
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


_ENVIRONMENT = _new_environment()


def compile_template(source: str, where: str) -> Template:
    """Compile `source`; `where` names it in the message of UnsupportedModel."""
    try:
        return _ENVIRONMENT.from_string(source)
    except TemplateSyntaxError as error:
        raise UnsupportedModel(
            f"the chat template in {where} does not compile: line {error.lineno}: {error.message}; "
            "give another with --chat-template FILE"
        ) from error


def render(template: Template, variables: Mapping[str, object], now: Callable[[], float] = time.monotonic) -> str:
    """Run `template`. Raises TemplateFailed when it refuses, fails, or exceeds a bound."""
    deadline = now() + MAX_SECONDS
    num_chars = 0
    chunks: list[str] = []
    try:
        for chunk in template.generate({**variables, "range": _bounded_range()}):
            chunks.append(chunk)
            num_chars += len(chunk)
            if num_chars > MAX_CHARS:
                raise SecurityError(f"the text is longer than {MAX_CHARS:,} characters")
            if now() > deadline:
                raise SecurityError(f"rendering took longer than {MAX_SECONDS:g} s")
    except _Refusal as error:
        raise TemplateFailed(
            f"the model's chat template refuses these messages: {error.message}", param="messages"
        ) from error
    except Exception as error:  # foreign code: whatever it raises is its failure, never the server's
        raise TemplateFailed(
            f"the model's chat template cannot render these messages: {error or type(error).__name__}; "
            "change the messages or give another template with --chat-template FILE",
            param="messages",
        ) from error
    return "".join(chunks)


def _bounded_range() -> Callable[..., range]:
    """Return a `range` whose results, all together, have at most MAX_STEPS numbers."""
    left = MAX_STEPS

    def bounded(*bounds: int) -> range:
        nonlocal left
        numbers = range(*bounds)
        left -= len(numbers)
        if left < 0:
            raise SecurityError(f"its loops over range take more than {MAX_STEPS:,} steps")
        return numbers

    return bounded
