"""What a caller wants: a prompt, how to sample, and where the answer ends.

Values only. Made by `api/` (or `app.LLM`), read by everyone below, changed by no one.
Text stays at the edge: the engine sees token ids, the stop strings are matched where the text is made.
Remote upstreams read `source` and `given` instead: what was said, before any template or default was applied.
"""

from __future__ import annotations

from typing import NewType

import msgspec

from headrace.core.conversation import Conversation, Given
from headrace.core.tracing import Span

RequestId = NewType("RequestId", str)
PRIORITIES = range(-100, 101)
SeqId = NewType("SeqId", int)  # one sequence = one choice of a request; unique in an engine's life


class Reach(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a token attends to when not to all before it: the first `num_sinks` tokens and the last `window`.

    The token itself is one of the window's. Sinks stand directly in front of the window, however far it has moved on:
    positions as StreamingLLM, Xiao et al. 2023, assigns them. Layers with a narrower window of their own keep that.
    """

    window: int
    num_sinks: int = 0

    @property
    def num_seen(self) -> int:
        """Return how many tokens a late token sees; the tokens up to there see all before them."""
        return self.window + self.num_sinks

    def num_evictable(self, start: int, block_size: int) -> int:
        """Return how many blocks behind those of the sinks no token from position `start` on attends to."""
        return max((start - self.window + 1) // block_size - -(-self.num_sinks // block_size), 0)


class WantedReach(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a request asks of a reach, None what it leaves to the server; see `sched.reaches`."""

    window: int | None = None
    num_sinks: int | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn. Ranges are checked by `sampling.params.validate`.

    temperature 0 is greedy: ties go to the lowest token id.
    top_k 0, top_p 1, min_p 0, typical_p 1 switch the filter off. Filters apply in this order:
    penalties and bias → temperature → top_k → typical_p → top_p → min_p.
    Penalties: `repetition` counts prompt and output; `presence` and `frequency` count output only.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0  # drawn by the API when the caller gives none
    logprobs: int | None = None  # None: none; k ≥ 0: the sampled token's and the k best
    min_tokens: int = 0  # before that many, stop tokens cannot be sampled

    @property
    def needs_history(self) -> bool:
        """Say whether sampling reads the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def needs_host(self) -> bool:
        """Say whether drawing the next token takes what only the host has: the last one, or the typical filter."""
        return self.needs_history or (self.typical_p < 1.0 and self.temperature > 0.0)


class StopRules(msgspec.Struct, frozen=True, kw_only=True):
    """Where an answer ends. `max_tokens` is resolved: never None here."""

    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()  # the model's end tokens, unless ignore_eos, and the caller's
    stop_strings: tuple[str, ...] = ()
    include_stop_text: bool = False


class BeamParams(msgspec.Struct, frozen=True, kw_only=True):
    """Search for the likeliest whole answers instead of drawing tokens; sampling parameters have no part in it.

    width           beams that live at once
    length_penalty  the power of the length that an answer's log probability is divided by; 0 favours short ones
    early_stopping  end with the `width`-th finished answer, though a beam might still beat it
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool = False


class Knock(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request before its prompt has been read; the fields are those of `Request`."""

    request_id: RequestId
    model: str
    arrival_s: float = 0.0
    tenant: str = ""
    priority: int = 0
    is_background: bool = False
    deadline_s: float | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted request: `n` sequences continue the same prompt.

    namespace      whose cached prefixes it may share, its tenant's if empty; set by the server, never by the caller
    pin_s          seconds for which the prompt's KV is kept after it, whoever needs room
    tenant         whose share of the engine it uses, and whose money; set by the server, never by the caller
    key_id         public part of the caller's key; set by the server
    task           the caller's own name for the job that this is a step of
    priority       class, PRIORITIES; lower is served first
    is_background  takes only what the others leave
    wants_stream   whether the caller reads the answer while it is made; remote requests say so in `given`
    grace_s        seconds for which its caller may be away and come back; it is not given up for being unread sooner
    deadline_s     seconds from arrival within which the first token must come; else it ends as EXPIRED
    source, given  what was said, for remote upstreams: a conversation, or a text to continue (None: `prompt`), and the
                   values that the caller gave. A request for a model that is served here needs neither
    span           the span that the request's stages are told to; None where it is not traced
    """

    request_id: RequestId
    model: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    stop: StopRules
    n: int = 1
    best_of: int | None = None  # answers to draw, of which the `n` of the best mean log probability are given
    beam: BeamParams | None = None
    prompt_logprobs: int | None = None  # score the prompt too (OpenAI `echo` + `logprobs`)
    reach: WantedReach | None = None  # None: what the server has its tokens attend to
    skip_special_tokens: bool = True
    arrival_s: float = 0.0  # Clock.now() at the edge
    namespace: str = ""
    pin_s: float = 0.0
    tenant: str = ""
    key_id: str = ""
    task: str = ""
    priority: int = 0
    is_background: bool = False
    deadline_s: float | None = None
    grace_s: float = 0.0
    wants_stream: bool = False
    source: Conversation | str | None = None
    given: Given | None = None
    span: Span | None = None
