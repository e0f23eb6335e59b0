"""Look a request over before it costs anything: every refusal names the field, its value and what would be accepted.

Owns nothing. Called by the async facade on the network thread. What depends on the engine's state (queue, context) is
checked by `Scheduler.check_admission`.
"""

from __future__ import annotations

from headrace.core.errors import InvalidRequest
from headrace.core.request import PRIORITIES, Request
from headrace.sampling import MAX_ALTERNATIVES, validate, validate_num_logprobs
from headrace.sched import num_offered

MAX_CHOICES = 128
MAX_STOP_STRINGS = 64


def check_request(request: Request, vocab_size: int) -> None:
    """Raise InvalidRequest unless every value of the request can be served by a model of this vocabulary."""
    if not request.prompt:
        raise InvalidRequest("the prompt has no tokens; it must have at least one", param="prompt")
    lowest, highest = min(request.prompt), max(request.prompt)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequest(f"prompt token {wrong} is outside the vocabulary (0 to {vocab_size - 1})", param="prompt")
    if not 1 <= request.n <= MAX_CHOICES:
        raise InvalidRequest(f"n is {request.n}; it must be at least 1 and at most {MAX_CHOICES}", param="n")
    if request.stop.max_tokens < 0:
        raise InvalidRequest(f"max_tokens is {request.stop.max_tokens}; it must be at least 0", param="max_tokens")
    if request.priority not in PRIORITIES:
        raise InvalidRequest(
            f"priority is {request.priority}; it must be from {PRIORITIES[0]} (first) to {PRIORITIES[-1]} (last)",
            param="priority",
        )
    _check_stops(request, vocab_size)
    _check_search(request, vocab_size)
    validate(request.sampling, vocab_size)
    validate_num_logprobs(request.prompt_logprobs, vocab_size, param="prompt_logprobs")


def _check_search(request: Request, vocab_size: int) -> None:
    if request.best_of is not None and not request.n <= request.best_of <= MAX_CHOICES:
        raise InvalidRequest(
            f"best_of is {request.best_of}; it must be at least n, {request.n}, and at most {MAX_CHOICES}",
            param="best_of",
        )
    if request.beam is None:
        return
    width, num_stops = request.beam.width, len(request.stop.stop_token_ids)
    if not request.n <= width:
        raise InvalidRequest(f"best_of is {width} beams; it must be at least n, {request.n}", param="best_of")
    if num_offered(width, num_stops) > MAX_ALTERNATIVES or width + num_stops > vocab_size:
        most = min(MAX_ALTERNATIVES // 2, MAX_ALTERNATIVES - num_stops, vocab_size - num_stops)
        raise InvalidRequest(
            f"best_of is {width} beams; with {num_stops} stop tokens at most {most} are served", param="best_of"
        )
    if request.stop.max_tokens < 1:
        raise InvalidRequest("max_tokens is 0; a beam search has to find at least one token", param="max_tokens")


def _check_stops(request: Request, vocab_size: int) -> None:
    strings = request.stop.stop_strings
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop has {len(strings)} strings; at most {MAX_STOP_STRINGS} are accepted", param="stop")
    if "" in strings:
        raise InvalidRequest("stop has an empty string, which would match everywhere; remove it", param="stop")
    for token_id in request.stop.stop_token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"stop token {token_id} is outside the vocabulary (0 to {vocab_size - 1})", param="stop_token_ids"
            )
