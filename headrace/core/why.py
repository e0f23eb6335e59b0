"""Why a request is where it is: what an engine says of one request when its owner asks.

Values only. Made by `engine.explaining`, written to the wire by `api.why`. Times are seconds since the request came.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class RequestState(StrEnum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"  # its reader is slow
    FINISHED = "finished"
    REFUSED = "refused"


class WaitReason(StrEnum):
    """What a waiting sequence lacks first."""

    INBOX = "inbox"  # the step in flight has to end before it is looked at
    PREFIX = "prefix"  # another request is computing what it begins with
    LOAD = "load"  # the places below the pool are asked for what it begins with
    BACKGROUND = "background"  # it takes only what others leave, and others wait
    FAIRNESS = "fairness"  # its tenant is ahead of others that wait
    PLACES = "places"  # as many sequences run as may
    BLOCKS = "blocks"  # the KV pool has no room for it
    SEARCH = "search"  # there is no room for all beams of its search at once
    TURN = "turn"  # others are before it, or the step was full


class PreemptionNote(msgspec.Struct, frozen=True, kw_only=True):
    """A time when a running choice gave its blocks back."""

    at_s: float
    by: str | None  # the request it made room for; None if that belongs to somebody else
    reason: str
    blocks_freed: int
    tokens_lost: int


class ChoiceNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One choice of a request. What does not apply is left out.

    position       place in the order of admission, 1 being next; None beyond the window that the scheduler looks at
    waiting        sequences that wait, itself included
    blocks_needed  KV blocks it lacks, besides those it shares; of a search: that all its beams may come to hold
    blocks_free    blocks that nobody holds
    beams          sequences that begin together, of a search
    load_blocks    KV blocks that the places below the pool are asked for
    load_left_s    seconds for which it still waits for them, at most
    late_places    places below the pool that it has waited for in vain; what they may have had is computed
    tenant_ahead   tokens, by weight, that its tenant has had more than the neediest that waits
    """

    index: int
    state: RequestState
    sentence: str
    reason: WaitReason | None = None
    position: int | None = None
    waiting: int | None = None
    priority: int = 0
    is_background: bool = False
    running: int | None = None
    places: int | None = None
    blocks_needed: int | None = None
    blocks_free: int | None = None
    beams: int | None = None
    load_blocks: int | None = None
    load_left_s: float | None = None
    late_places: tuple[str, ...] = ()
    prefix_from: str | None = None
    tenant_ahead: float | None = None
    prompt_computed: int | None = None
    output_tokens: int | None = None
    finish: str | None = None
    preemptions: list[PreemptionNote] = []


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request and its choices. `refused` has the error's code; its numbers are in the sentence."""

    id: str
    model: str
    state: RequestState
    sentence: str
    age_s: float
    queued_for_s: float | None = None
    first_token_after_s: float | None = None
    finished_after_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    refused: str | None = None
    late_places: tuple[str, ...] = ()
    choices: list[ChoiceNote] = []
