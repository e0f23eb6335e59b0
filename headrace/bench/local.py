"""The local engine as the benchmarks drive it: `LLM` behind the bench's small `Generator` face."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.app import LLM


class LocalGenerator:
    """Drives an `LLM` greedily. Does not own it."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def generate_tokens(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> None:
        """Continue all prompts together by exactly `output_tokens` tokens."""
        answers = self._llm.generate(list(prompts), max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        for answer in answers:
            if answer.completion_tokens != output_tokens:
                raise RuntimeError(f"{answer.completion_tokens} tokens came, {output_tokens} were asked for")
