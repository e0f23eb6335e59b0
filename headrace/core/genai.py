"""OpenTelemetry's attribute names for generative AI, filled from requests and usage.

Owns nothing; pure. Content has no part in it: no prompt, no answer, no tool, no stop string.
Source: OpenTelemetry semantic conventions for generative AI (status: development), and the cost attributes proposed
there.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.core.delta import FinishReason, Usage
from headrace.core.request import Request

_NANO_PER_USD = 10**9

Value = str | bool | int | float | Sequence[str]


def asked(request: Request, provider: str) -> dict[str, Value]:
    """Describe what was asked of whom: the values of a local engine, or those that the caller gave."""
    given = request.given
    values: dict[str, Value | None] = {"gen_ai.provider.name": provider}
    if given is None:
        sampling = request.sampling
        values["gen_ai.request.max_tokens"] = request.stop.max_tokens
        values["gen_ai.request.temperature"] = sampling.temperature
        values["gen_ai.request.top_p"] = sampling.top_p
        values["gen_ai.request.top_k"] = sampling.top_k or None
        values["gen_ai.request.frequency_penalty"] = sampling.frequency_penalty or None
        values["gen_ai.request.presence_penalty"] = sampling.presence_penalty or None
    else:
        values["gen_ai.request.max_tokens"] = given.max_tokens
        values["gen_ai.request.temperature"] = given.temperature
        values["gen_ai.request.top_p"] = given.top_p
        values["gen_ai.request.top_k"] = given.top_k
        values["gen_ai.request.frequency_penalty"] = given.frequency_penalty
        values["gen_ai.request.presence_penalty"] = given.presence_penalty
    values["gen_ai.request.choice.count"] = request.n if request.n > 1 else None
    return {name: value for name, value in values.items() if value is not None}


def answered(request: Request, usage: Usage, finishes: Sequence[FinishReason]) -> dict[str, Value]:
    """Describe what came of it."""
    values: dict[str, Value] = {
        "gen_ai.response.id": request.request_id,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    if finishes:
        values["gen_ai.response.finish_reasons"] = [finish.value for finish in finishes]
    if usage.cached_tokens:
        values["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.cache_write_tokens:
        values["gen_ai.usage.cache_creation.input_tokens"] = usage.cache_write_tokens
    return values


def charged(cost_nano: int) -> dict[str, Value]:
    """Describe what the caller is charged."""
    return {"gen_ai.usage.cost.amount": cost_nano / _NANO_PER_USD, "gen_ai.usage.cost.currency": "USD"}
