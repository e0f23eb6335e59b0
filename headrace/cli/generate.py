"""`headrace generate`: continue prompts without a server."""

from __future__ import annotations

import argparse
import sys
from typing import cast

import msgspec

from headrace.app.completions import Completion
from headrace.app.llm import LLM, SamplingParams
from headrace.cli.configured import settings_from
from headrace.cli.progress import pull_with_bar
from headrace.core.errors import InvalidRequest


def run(args: argparse.Namespace) -> int:
    """Write one continuation per prompt to standard output."""
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in args.prompt or ["-"]]
    if args.stream and (len(prompts) > 1 or args.json):
        raise InvalidRequest("--stream takes one prompt and no --json", param="stream")
    options = sampling_options(args)
    settings = settings_from(args)
    pull_with_bar(settings, settings.first_model)
    with LLM(settings=settings) as llm:
        if args.stream:
            for piece in llm.stream(prompts[0], **options):
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
            return 0
        for prompt, completion in zip(prompts, llm.generate(prompts, **options), strict=True):
            sys.stdout.write((_json(prompt, completion) if args.json else completion.text) + "\n")
    return 0


def sampling_options(args: argparse.Namespace) -> SamplingParams:
    """Return the sampling flags that were given."""
    names = ("max_tokens", "temperature", "top_p", "seed")
    return cast(SamplingParams, {name: value for name in names if (value := getattr(args, name)) is not None})


def _json(prompt: str, completion: Completion) -> str:
    told = {
        "prompt": prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }
    return msgspec.json.encode(told).decode()
