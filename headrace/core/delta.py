"""The one stream every upstream speaks: typed deltas, the last of each choice with its finish reason.

Invariant: for each `index` in range(n) exactly one delta has `finish` set, and nothing of that index follows it.
The very last delta of a request carries `usage`, made where the tokens were made.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from headrace.core.conversation import ForeignPart
from headrace.core.cuts import Cut


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"  # end token or stop string
    LENGTH = "length"  # max_tokens or the model's context
    TOOL_CALLS = "tool_calls"  # the model waits for the tools it called
    CONTENT_FILTER = "content_filter"  # the upstream withheld the rest
    PAUSE = "pause_turn"  # a long turn of the provider's own tools; send it back to go on
    ABORT = "abort"  # the caller went away or cancelled
    EXPIRED = "expired"  # its deadline passed before its first token; `Delta.error` says after how long
    ERROR = "error"  # this request failed; `Delta.error` says why


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token and the natural log of its probability, before temperature and filters."""

    token_id: int | None  # None where a remote upstream does not tell
    logprob: float
    text: str = ""  # the token alone, decoded; filled where the text is made
    token_bytes: bytes = b""


class PositionLogprobs(msgspec.Struct, frozen=True):
    """The token at one position and the best alternatives there, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a whole request, all its choices. The buckets are disjoint parts of the two totals."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens whose KV was not computed again
    cache_write_tokens: int = 0  # prompt tokens that a provider charges for keeping
    cache_write_1h_tokens: int = 0  # of those: kept for an hour instead of five minutes
    reasoning_tokens: int = 0  # completion tokens that were thought, not said
    engine_ns: int = 0  # of an engine of ours: its time that was charged to the request
    cost_nano: int | None = None  # nano-dollars that the caller is charged, where the price is known
    reported_nano: int | None = None  # nano-dollars that a remote upstream says it charged for the answer
    is_estimate: bool = False  # the upstream did not say; counted from what was sent and came back


class ToolCallDelta(msgspec.Struct, frozen=True):
    """New text of one tool call. `call_id` and `name` come with its first."""

    index: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """New text of one choice. `text` may be empty while a stop string may still match.

    A delta with more than one kind of text means them in this order: reasoning, signature, text, tool calls.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()  # first delta only, when asked for
    finish: FinishReason | None = None
    stop_match: str | int | None = None  # the stop string or stop token id that ended it
    error: str | None = None
    cut: Cut | None = None  # of an ERROR: the server ended the request, which may be sent again
    usage: Usage | None = None
    reasoning: str = ""
    signature: str = ""  # of the reasoning before it
    refusal: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()  # first delta only, where a remote upstream tells
    foreign: tuple[ForeignPart, ...] = ()  # whole parts that only one wire knows
    headers: tuple[tuple[str, str], ...] = ()  # for the HTTP reply, if it has not begun: told by the gateway's stages

    @property
    def has_words(self) -> bool:
        """Say whether it adds to the answer."""
        return bool(self.text or self.reasoning or self.tool_calls or self.refusal or self.foreign)
