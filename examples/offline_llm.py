"""Several prompts at once, without a server: they share every step.

python examples/offline_llm.py [MODEL]
"""

from __future__ import annotations

import sys

from headrace import LLM

PROMPTS = ["The capital of France is", "Two plus two is", "Water boils at"]


def main() -> None:
    llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
    for prompt, answer in zip(PROMPTS, llm.generate(PROMPTS, temperature=0.0, max_tokens=16), strict=True):
        print(f"{prompt} →{answer.text}")


if __name__ == "__main__":
    main()
