"""The one stream every upstream speaks: typed deltas, the last of each choice with its finish reason.

Invariant: for each `index` in range(n) exactly one delta has `finish` set, and nothing of that index follows it.
The very last delta of a request carries `usage`, made where the tokens were made.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"  # end token or stop string
    LENGTH = "length"  # max_tokens or the model's context
    ABORT = "abort"  # the caller went away or cancelled
    EXPIRED = "expired"  # its deadline passed before its first token; `Delta.error` says after how long
    ERROR = "error"  # this request failed; `Delta.error` says why


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token and the natural log of its probability, before temperature and filters."""

    token_id: int
    logprob: float
    text: str = ""  # the token alone, decoded; filled where the text is made
    token_bytes: bytes = b""


class PositionLogprobs(msgspec.Struct, frozen=True):
    """The token at one position and the best alternatives there, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a whole request, all its choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens whose KV was not computed again


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """New text of one choice. `text` may be empty while a stop string may still match."""

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()  # first delta only, when asked for
    finish: FinishReason | None = None
    stop_match: str | int | None = None  # the stop string or stop token id that ended it
    error: str | None = None
    usage: Usage | None = None
