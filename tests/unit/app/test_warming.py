from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from headrace.api import ServedModel
from headrace.app.warming import read_warm_file, warm_model
from headrace.core.errors import ConfigError
from headrace.testing import ByteTokenizer, EchoUpstream, VirtualClock


def file_of(path: Path, *lines: str) -> Path:
    file = path / "warm.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


class Recorder:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.echo = EchoUpstream(ByteTokenizer())

    def generate(self, request: Any) -> Any:
        self.requests.append(request)
        return self.echo.generate(request)


def test_each_model_takes_what_is_meant_for_it_and_bad_lines_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    tokenizer: Any = ByteTokenizer()
    model = ServedModel(
        name="m", root="", upstream=recorder, tokenizer=tokenizer, template=None, max_context=8, created=0
    )
    file = file_of(
        tmp_path,
        '{"prompt": "one", "ttl_s": 5}',
        "",
        '{"prompt": "two", "model": "m"}',
        '{"prompt": "three", "model": "other"}',
        '{"prompt": "much too long"}',
    )
    assert asyncio.run(warm_model(model, read_warm_file(file), VirtualClock(), is_first=True)) == 2
    assert [(bytes(r.prompt[1:]).decode(), r.pin_s) for r in recorder.requests] == [("one", 5.0), ("two", math.inf)]
    assert "prompt 4 of the warm file is left out" in caplog.text
    assert "much too long" not in caplog.text
    assert asyncio.run(warm_model(model, read_warm_file(file), VirtualClock(), is_first=False)) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "line 2"),
        ('{"promt": "a"}', "promt"),
        ('{"model": "m"}', "either 'prompt' or 'messages'"),
        ('{"prompt": "a", "messages": []}', "either 'prompt' or 'messages'"),
    ],
)
def test_a_file_is_refused_whole_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    file = file_of(tmp_path, '{"prompt": "good"}', line)
    with pytest.raises(ConfigError, match=said):
        read_warm_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the warm file .*nowhere"):
        read_warm_file(tmp_path / "nowhere")
