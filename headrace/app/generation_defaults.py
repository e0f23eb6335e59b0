"""Sampling that a model's makers recommend: `generation_config.json` beside HF files.

Owns nothing. What the file does not say stays at the API's defaults; `do_sample: false` means greedy.
"""

from __future__ import annotations

import msgspec

from headrace.core.errors import ModelFileBroken
from headrace.core.request import SamplingParams
from headrace.core.text_files import TextFiles

_FILE = "generation_config.json"


class _GenerationConfig(msgspec.Struct):
    """The fields that sampling knows; the file has many others."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None


def generation_defaults(files: TextFiles) -> SamplingParams:
    """Return the model's own sampling defaults. Raises ModelFileBroken if the file is there but not readable."""
    if files.directory is None or not (files.directory / _FILE).is_file():
        return SamplingParams()
    path = files.directory / _FILE
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_GenerationConfig)
    except msgspec.DecodeError as err:
        raise ModelFileBroken(f"{path} cannot be read: {err}; fetch the model again") from err
    base = SamplingParams()
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    found = {name: value for name in names if (value := getattr(config, name)) is not None}
    if config.do_sample is False and config.temperature is None:
        found["temperature"] = 0.0
    return msgspec.structs.replace(base, **found)
