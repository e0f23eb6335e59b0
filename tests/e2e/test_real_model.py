"""The default model behind the whole path: it knows the capital of France."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SIZES = ["--kv-memory-mib", "256", "--max-num-seqs", "4", "--max-step-tokens", "64"]


@pytest.mark.server
@pytest.mark.parametrize(
    ("question", "flags"),
    [
        ("Name the capital of France.", []),
        # In fp32 "The" leads "L" by 0.08 nats here; int8 activations move logits by more, bf16 does not.
        ("What is the capital of France?", ["--quantization", "bf16"]),
    ],
)
def test_the_capital_of_france_is_paris(smollm2_path: Path, start_server: Any, question: str, flags: list[str]) -> None:
    with start_server(f"file:{smollm2_path}", *SIZES, *flags) as server:
        client = server.openai()
        options: Any = {
            "model": client.models.list().data[0].id,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 16,
        }
        chunks = client.chat.completions.create(stream=True, **options)
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert "Paris" in answer
        whole = client.chat.completions.create(**options)
        assert whole.choices[0].message.content == answer
        assert whole.choices[0].finish_reason == "stop"
        assert server.metric("vllm:kv_cache_usage_perc") == 0
