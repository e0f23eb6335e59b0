"""From wire fields to `SamplingParams`, `StopRules` and `Request`: the one place where defaults are filled in.

Invariant: what comes out is complete (max_tokens resolved, seed drawn), and every refusal names the wire's own field.
Ranges of sampling fields are judged by `sampling.validate`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from headrace.api.alternatives import alternatives
from headrace.api.openai_types import GenerationBody
from headrace.api.served import ServedModel
from headrace.core.errors import InvalidRequest, PromptTooLong
from headrace.core.request import PRIORITIES, Knock, Request, RequestId, SamplingParams, StopRules, WantedReach
from headrace.sampling import validate

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_DEADLINE_MS = 3_600_000
_SEED_MASK = (1 << 63) - 1
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The endpoint's own part of a request, already in core terms.

    max_tokens    None: the rest of the context
    may_be_empty  max_tokens may be 0: only the prompt is scored
    logprobs      alternatives per output token; None: no logprobs
    """

    prompt: tuple[int, ...]
    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    may_be_empty: bool = False


def knock_of(body: GenerationBody, model: ServedModel, request_id: str, arrival_s: float) -> Knock:
    """Return what decides whether there is room for a request. Raises InvalidRequest naming field, value and limit."""
    priority, deadline_s = _urgency(body)
    return Knock(
        request_id=RequestId(request_id),
        model=model.name,
        arrival_s=arrival_s,
        priority=priority,
        is_background=body.service_tier == "flex",
        deadline_s=deadline_s,
    )


def _urgency(body: GenerationBody) -> tuple[int, float | None]:
    """Return class and deadline, in seconds after the arrival."""
    deadline_ms = optional_bounded("deadline_ms", body.deadline_ms, 1, MAX_DEADLINE_MS)
    priority = optional_bounded("priority", body.priority, PRIORITIES[0], PRIORITIES[-1]) or 0
    return priority, None if deadline_ms is None else deadline_ms / 1e3


def build_request(
    body: GenerationBody, wanted: Wanted, model: ServedModel, request_id: str, arrival_s: float
) -> Request:
    """Make the core request. Raises InvalidRequest naming field, value and limit; PromptTooLong with the numbers."""
    room = model.max_context - len(wanted.prompt)
    if not wanted.prompt:
        raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {len(wanted.prompt):,} tokens; '{model.name}' accepts {model.max_context - 1:,} "
            "and one for the answer; shorten it"
        )
    max_tokens = room if wanted.max_tokens is None else wanted.max_tokens
    least = 0 if wanted.may_be_empty else 1
    if max_tokens < least:
        raise InvalidRequest(f"max_tokens is {max_tokens}; it must be at least {least}", param="max_tokens")
    n, best_of, beam = alternatives(body, wanted.logprobs)
    max_tokens = min(max_tokens, room)
    priority, deadline_s = _urgency(body)
    return Request(
        request_id=RequestId(request_id),
        model=model.name,
        prompt=wanted.prompt,
        sampling=sampling_params(body, wanted.logprobs, max_tokens, model),
        stop=stop_rules(body, max_tokens, model),
        n=n,
        best_of=best_of,
        beam=beam,
        prompt_logprobs=optional_bounded("prompt_logprobs", wanted.prompt_logprobs, 0, MAX_LOGPROBS),
        reach=_wanted_reach(body),
        skip_special_tokens=True if body.skip_special_tokens is None else body.skip_special_tokens,
        arrival_s=arrival_s,
        priority=priority,
        is_background=body.service_tier == "flex",
        deadline_s=deadline_s,
        wants_stream=bool(body.stream),
    )


def sampling_params(body: GenerationBody, logprobs: int | None, max_tokens: int, model: ServedModel) -> SamplingParams:
    """Fill what the caller left out from the model's defaults, and check the ranges."""
    base = model.defaults
    top_k = base.top_k if body.top_k is None else body.top_k
    min_tokens = 0 if body.min_tokens is None else body.min_tokens
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {min_tokens}, more than the {max_tokens} that max_tokens and context allow",
            param="min_tokens",
        )
    params = SamplingParams(
        temperature=base.temperature if body.temperature is None else body.temperature,
        top_k=0 if top_k == -1 else top_k,
        top_p=base.top_p if body.top_p is None else body.top_p,
        min_p=base.min_p if body.min_p is None else body.min_p,
        typical_p=base.typical_p if body.typical_p is None else body.typical_p,
        repetition_penalty=base.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body),
        seed=_random.getrandbits(63) if body.seed is None else body.seed & _SEED_MASK,
        logprobs=logprobs,
        min_tokens=min_tokens,
    )
    validate(params, model.tokenizer.vocab_size)
    return params


def stop_rules(body: GenerationBody, max_tokens: int, model: ServedModel) -> StopRules:
    """Collect where the answer ends."""
    strings = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"'stop' has {len(strings)} strings; at most {MAX_STOP_STRINGS} are served", param="stop")
    ids = list(body.stop_token_ids or ())
    model.check_token_ids(ids, "stop_token_ids")
    ends = () if body.ignore_eos else model.tokenizer.eos_ids
    return StopRules(
        max_tokens=max_tokens,
        stop_token_ids=frozenset((*ends, *ids)),
        stop_strings=tuple(string for string in strings if string),
        include_stop_text=bool(body.include_stop_str_in_output),
    )


def _wanted_reach(body: GenerationBody) -> WantedReach | None:
    """Return what the caller asked for; whether the server has it is the engine's to say."""
    if body.attention_window is None and body.attention_sinks is None:
        return None
    return WantedReach(window=body.attention_window, num_sinks=body.attention_sinks)


def _logit_bias(body: GenerationBody) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for key, bias in (body.logit_bias or {}).items():
        try:
            token_id = int(key)
        except ValueError as err:
            raise InvalidRequest(f"'logit_bias' has the key '{key}'; keys are token ids", param="logit_bias") from err
        pairs.append((token_id, bias))
    return tuple(pairs)


def optional_bounded(name: str, value: int | None, low: int, high: int) -> int | None:
    """Return `value`; raise InvalidRequest unless it is None or from `low` to `high`."""
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} is {value}; it must be between {low} and {high}", param=name)
    return value
