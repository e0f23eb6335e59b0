"""vLLM's CPU build through its offline `LLM`. Runs in the peer's virtual environment.

Config: {"model": HF directory, "threads": n, "context": tokens per sequence, "sequences": most at a time, "dtype": …}.
Prefix caching is off so that every prompt is computed. Logits are not offered: quality is read from its own base dtype.
"""

from __future__ import annotations

from typing import Any

import runner
import vllm


class Vllm:
    """One offline engine."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._llm = vllm.LLM(
            model=config["model"],
            dtype=config.get("dtype", "bfloat16"),
            max_model_len=config["context"],
            max_num_seqs=config["sequences"],
            enable_prefix_caching=False,
            enforce_eager=False,
            seed=0,
        )
        self.version = f"vllm {vllm.__version__}"
        self.settings = f"{config.get('dtype', 'bfloat16')}, {config['threads']} threads"

    def generate(self, prompts: list[list[int]], output_tokens: int) -> None:
        options = vllm.SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        self._llm.generate(inputs, options, use_tqdm=False)

    def logits(self, chunks: list[list[int]], path: str) -> None:
        raise RuntimeError("the offline API gives no logits")


if __name__ == "__main__":
    runner.main(Vllm)
