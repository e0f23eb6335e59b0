"""Going on with an answer that broke off, on another replica of the same model, by replaying its tokens.

Owns nothing between answers. Invariant: the caller's text continues where it ended: nothing is said twice and nothing
is left out. The replica is asked to spell the tokens so far; what the caller has not had of them (text held back for a
stop string or half a character) is said first, and stop strings are matched here, as one may lie across the seam.

    tokens so far  |======== had by the caller ========|== tail ==|        the replica goes on here
                                                                  └──────► with prompt + tokens so far
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.request import Request
from headrace.gateway.upstream.failure import transient
from headrace.gateway.upstream.member import Member
from headrace.gateway.upstream.replay import Replay
from headrace.text import StopMatcher

_HALF_CHARACTER = "\ufffd"
_MOST_DROPPED = 3  # a character has at most four bytes, and a token at least one


async def resume(replay: Replay, request: Request, member: Member) -> AsyncGenerator[Delta, None]:
    """Yield the rest of the answer from `member`. Raises Failure."""
    given = request.given
    assert given is not None, "only a request for a remote upstream is replayed"
    tail, ids = await _tail(replay, request, member)
    stops = StopMatcher(given.stop or ())
    released, match = stops.feed(tail)
    left = None if given.max_tokens is None else given.max_tokens - len(ids)
    so_far = Usage(prompt_tokens=len(replay.prompt_ids), completion_tokens=len(ids))
    if match is not None:
        yield Delta(text=released, finish=FinishReason.STOP, stop_match=match, usage=so_far)
        return
    if left is not None and left < 1:
        yield Delta(text=released + stops.flush(), finish=FinishReason.LENGTH, usage=so_far)
        return
    if released:
        yield Delta(text=released)
    values = msgspec.structs.replace(
        given,
        max_tokens=left,
        stop=None,
        min_tokens=None if given.min_tokens is None else max(0, given.min_tokens - len(ids)),
        extras=(),
    )
    rest = msgspec.structs.replace(request, prompt=(*replay.prompt_ids, *ids), source=None, given=values)
    attempt = member.attempt(rest)
    try:
        while deltas := await attempt.more():
            for delta in deltas:
                released, match = stops.feed(delta.text)
                usage = _whole_usage(so_far, delta.usage)
                if match is not None:
                    usage = usage or msgspec.structs.replace(so_far, is_estimate=True)
                    yield Delta(text=released, finish=FinishReason.STOP, stop_match=match, usage=usage)
                    return
                if delta.finish is not None:
                    released += stops.flush()
                if released or delta.finish is not None:
                    yield msgspec.structs.replace(delta, text=released, usage=usage)
    finally:
        attempt.close()


async def _tail(replay: Replay, request: Request, member: Member) -> tuple[str, list[int]]:
    """Return the text of the tokens so far that the caller has not had, and the tokens that have whole characters.

    Raises Failure if the replica spells them otherwise.
    """
    had = replay.text
    head = await member.detokenize(request.model, replay.prompt_ids)
    ids = list(replay.ids)
    for num_dropped in range(_MOST_DROPPED + 1):
        kept = ids[: len(ids) - num_dropped]
        whole = await member.detokenize(request.model, (*replay.prompt_ids, *kept))
        text = whole.removeprefix(head)
        is_seamless = whole.startswith(head) and text.startswith(had)
        if is_seamless and not text[len(had) :].endswith(_HALF_CHARACTER):
            return text[len(had) :], kept
        if len(kept) < 2:
            break
    raise transient(member.name, "spells the tokens so far in another way")


def _whole_usage(so_far: Usage, rest: Usage | None) -> Usage | None:
    """Add up both replicas; what was computed twice is not charged twice. What the first one cost nobody has told."""
    if rest is None:
        return None
    return msgspec.structs.replace(
        so_far,
        completion_tokens=so_far.completion_tokens + rest.completion_tokens,
        reported_nano=rest.reported_nano,
    )
