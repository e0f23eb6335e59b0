from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

MakeTrace = Callable[..., Path]


@pytest.fixture
def write_trace(tmp_path: Path) -> MakeTrace:
    """Write a trace in Mooncake's form; a request is (milliseconds, tokens in, tokens out, ids)."""

    def write(*requests: tuple[int, int, int, list[int]]) -> Path:
        names = ("timestamp", "input_length", "output_length", "hash_ids")
        lines = [json.dumps(dict(zip(names, request, strict=True))) for request in requests]
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
