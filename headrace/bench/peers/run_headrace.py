"""Headrace itself under the runner protocol, in a process of its own like the others.

Config: {"model": name or source, "threads": n, "context": tokens per sequence, "sequences": most at a time,
"quantization": …}.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import runner

import headrace
from headrace.app import LLM
from headrace.app.scoring import open_scorer
from headrace.bench.local import LocalGenerator
from headrace.core.settings import EngineSettings, Settings


class Headrace:
    """One engine in this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        engine = EngineSettings(
            backend=config.get("backend", "auto"),
            threads=config["threads"],
            max_num_seqs=config["sequences"],
            max_context=config["context"],
            **config.get("engine", {}),
        )
        self._settings = msgspec.structs.replace(Settings(), models=(config["model"],), engine=engine)
        self._llm = LLM(settings=self._settings)
        self._generator = LocalGenerator(self._llm)
        self.version = f"headrace {headrace.__version__}"
        self.settings = f"{self._llm.plan.backend.value}, {config['threads']} threads, {config.get('engine', {})}"

    def generate(self, prompts: list[list[int]], output_tokens: int) -> None:
        self._llm.settle()
        self._generator.generate_tokens(prompts, output_tokens)

    def logits(self, chunks: list[list[int]], path: str) -> None:
        with open_scorer(self._settings) as scorer:
            rows = [scorer.logits(chunk) for chunk in chunks]
        np.save(path, np.concatenate(rows))


if __name__ == "__main__":
    runner.main(Headrace)
