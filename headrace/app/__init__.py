"""The parts put together: settings and machine to a plan, a plan to engines, engines to a server or an `LLM`."""

from headrace.app.completions import Completion, CompletionOutput, Logprob
from headrace.app.llm import LLM, SamplingParams

__all__ = ["LLM", "Completion", "CompletionOutput", "Logprob", "SamplingParams"]
