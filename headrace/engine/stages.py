"""The stages of a request in an engine, told to its trace when it has ended.

Owns nothing. The times are those that the engine keeps for its statistics anyway; nothing is told per token.

    arrival ── queue ── first step ── prefill ── first token ── decode ── end
"""

from __future__ import annotations

from headrace.core.delta import FinishReason, Usage
from headrace.core.genai import answered, asked
from headrace.core.request import Request
from headrace.core.stats import RequestStats
from headrace.core.tracing import Span

_FAILED = (FinishReason.ERROR, FinishReason.EXPIRED)


def tell_stages(span: Span, request: Request, stats: RequestStats) -> None:
    """Add an ended request to its trace."""
    whole = span.begin("inference", stats.arrival_s, model=stats.model)
    whole.note(asked(request, "headrace"))
    usage = Usage(
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.completion_tokens,
        cached_tokens=stats.cached_tokens,
    )
    whole.note(answered(request, usage, stats.finishes))
    whole.note({"headrace.engine_seconds": stats.engine_ns / 1e9, "headrace.preemptions": stats.num_preemptions})
    ends = (stats.first_scheduled_s, stats.first_token_s, stats.finished_s)
    began_s = stats.arrival_s
    for name, ended_s in zip(("queue", "prefill", "decode"), ends, strict=True):
        stage = whole.begin(name, began_s)
        stage.end(stats.finished_s if ended_s is None else ended_s)
        if ended_s is None:
            break  # it ended in this stage
        began_s = ended_s
    failure = next((finish for finish in stats.finishes if finish in _FAILED), None)
    whole.end(stats.finished_s, error="" if failure is None else failure.value)
