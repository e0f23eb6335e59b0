"""Headrace: the whole path from an HTTP request to the last multiply, in one package.

`LLM` is the offline API, `SamplingParams` its options. They are imported on first use, so that `import headrace` and
`headrace --help` stay instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.app.llm import LLM, SamplingParams

__version__ = "0.1.0"

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name in ("LLM", "SamplingParams"):
        from headrace.app import llm

        return llm.LLM if name == "LLM" else llm.SamplingParams
    raise AttributeError(f"module 'headrace' has no attribute '{name}'")
