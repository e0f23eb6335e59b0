"""A model's own sampling defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.app.generation_defaults import generation_defaults
from headrace.core.errors import ModelFileBroken
from headrace.core.request import SamplingParams
from headrace.core.text_files import TextFiles


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"temperature": 0.6, "top_k": 20, "eos_token_id": [1]}', SamplingParams(temperature=0.6, top_k=20)),
        ('{"do_sample": false}', SamplingParams(temperature=0.0)),
        ('{"do_sample": true, "top_p": null, "repetition_penalty": 1.1}', SamplingParams(repetition_penalty=1.1)),
    ],
)
def test_the_file_beside_the_weights_counts(tmp_path: Path, text: str, expected: SamplingParams) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert generation_defaults(TextFiles(directory=tmp_path)) == expected


def test_no_file_means_openai_defaults(tmp_path: Path) -> None:
    assert generation_defaults(TextFiles(directory=tmp_path)) == SamplingParams()
    assert generation_defaults(TextFiles(gguf_metadata={})) == SamplingParams()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ModelFileBroken, match="generation_config"):
        generation_defaults(TextFiles(directory=tmp_path))
