"""`headrace chat`: a conversation in the terminal, with a model here or a server elsewhere.

Ctrl-C stops the answer, not the program; twice at an empty prompt, or /exit, ends it. /clear forgets the conversation.
With standard input from a pipe each line is a question, and nothing but answers is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing
from typing import Protocol

from headrace.app.llm import LLM, SamplingParams
from headrace.cli.configured import settings_from
from headrace.cli.generate import sampling_options
from headrace.cli.progress import pull_with_bar
from headrace.cli.remote import RemoteChat
from headrace.core.errors import ConfigError, HeadraceError

_PROMPT = "› "


class Talker(Protocol):
    """Whoever answers: a model in this process or a server."""

    def answer(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        """Yield the answer's text; closing the iterator stops the answer."""
        ...


class LocalChat:
    """A model in this process."""

    def __init__(self, llm: LLM, options: SamplingParams) -> None:
        self._llm = llm
        self._options = options

    def answer(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        """Yield the answer's text."""
        return self._llm.stream_chat(messages, **self._options)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    options = sampling_options(args)
    with ExitStack() as stack:
        settings = settings_from(args)
        if args.url is not None:
            remote = stack.enter_context(RemoteChat(args.url, args.models, settings.server.api_key, options))
            converse(remote, args.system, remote.name)
            return 0
        pull_with_bar(settings, settings.first_model)
        llm = stack.enter_context(LLM(settings=settings))
        if not llm.has_chat_template:
            raise ConfigError(f"'{llm.name}' is a base model without a chat template; use `headrace generate`")
        converse(LocalChat(llm, options), args.system, llm.name)
    return 0


def converse(talker: Talker, system: str | None, name: str) -> None:
    """Read questions and write answers until end of input or /exit."""
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"Talking to {name}. /clear forgets, /exit ends, Ctrl-C stops an answer.")
    while (question := _ask(is_terminal)) is not None:
        match question.strip():
            case "":
                continue
            case "/exit":
                return
            case "/clear":
                messages = list(opening)
                continue
        messages.append({"role": "user", "content": question})
        answer = _tell(talker, messages)
        if answer is None:
            messages.pop()
        else:
            messages.append({"role": "assistant", "content": answer})


def _ask(is_terminal: bool) -> str | None:
    """Return the next question; None at the end of the input, or when Ctrl-C comes twice."""
    for _ in range(2):
        try:
            return input(_PROMPT if is_terminal else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\n(Ctrl-C again or /exit ends)")
    return None


def _tell(talker: Talker, messages: list[dict[str, str]]) -> str | None:
    """Write the answer as it comes and return it, cut short by Ctrl-C; None if there was none."""
    told: list[str] = []
    try:
        with closing(talker.answer(messages)) as pieces:
            for piece in pieces:
                told.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    except HeadraceError as err:
        print(f"headrace: {err.message}", file=sys.stderr)
        return None
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(told)
