"""The parts put together: settings and machine to a plan, a plan to engines, engines to a server or an `LLM`."""

from headrace.app.llm import LLM, Completion, Options

__all__ = ["LLM", "Completion", "Options"]
