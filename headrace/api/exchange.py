"""The way out of every generating call: a stream or a whole answer, plain, resumable or under an idempotency key.

Owns the headers `X-Resume-Grace`, `Idempotency-Key` and `Last-Event-ID`. Called by the chat and the completions
endpoint, which say how a call begins; what becomes of it is the same for both.

    plain        the call lives as long as its connection
    recorded     the call runs by itself; connections read its recording, and when the last one leaves the grace
                 period begins
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import ChainMap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import NamedTuple, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from headrace.api.anthropic_types import MessagesBody
from headrace.api.calls import Call
from headrace.api.degrading import Descent
from headrace.api.ladder import WISH, read_wish
from headrace.api.openai_types import GenerationBody
from headrace.api.recording import Recording
from headrace.api.replies import JsonReply
from headrace.api.sse import EventStream, until_disconnect
from headrace.api.state import ApiState
from headrace.api.visit import Visit
from headrace.core.errors import HeadraceError, InvalidRequest

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NUMBER = re.compile(r"[0-9]{1,15}")
_encoder = msgspec.json.Encoder()
_WISH = WISH.encode()
_REPLAYED = {"idempotent-replayed": "true"}


class Wire(Protocol):
    """Spells one call's answer."""

    def events(self) -> AsyncGenerator[bytes, None]:
        """Yield framed events, `[DONE]` last."""
        ...

    async def reply(self) -> msgspec.Struct:
        """Return the whole answer."""
        ...


Body = GenerationBody | MessagesBody
Begin = Callable[[Call], Awaitable[Wire]]


class _Wish(NamedTuple):
    """What a client asks for beside the answer."""

    grace_s: float = 0.0
    key: str | None = None


_NO_WISH = _Wish()


async def respond(visit: Visit, body: Body, begin: Begin) -> ASGIApp:
    """Answer a call.

    begin  checks the request and binds the call to a model; what it raises is the call's answer
    Raises KeyReused, RequestIdTaken, StreamExpired, Overloaded or InvalidRequest for what the headers ask.
    """
    state = visit.state
    wish = _read_wish(visit, state)
    if wish.grace_s or wish.key is not None:
        return await _recorded(visit, state, body, begin, wish)
    call = state.calls.open(visit.caller, visit.request_id, visit.span, visit.trail)
    visit.call = call
    is_streaming = False
    try:
        wire = _descent(visit, state, call, body, begin) or await begin(call)
        if body.stream:
            is_streaming = True  # the stream closes the call
            return EventStream(wire.events(), visit.request_id, call, headers=call.headers)
        try:
            reply = await until_disconnect(visit.scope, visit.receive, call.run(wire.reply()))
        except HeadraceError as err:
            call.tell_headers(err)
            raise
    finally:
        if not is_streaming:
            call.close()
    return JsonReply(_encoder.encode(reply), call.headers)


def _descent(visit: Visit, state: ApiState, call: Call, body: Body, begin: Begin) -> Descent | None:
    """Return the way down the ladder of the wanted model; None if it has none or the caller takes nothing less."""
    if not read_wish(visit.header(_WISH)) or state.ladders.is_empty:
        return None
    model = state.models.find(body.model).name
    return Descent(call, begin, state.ladders, model, visit.path, body) if state.ladders.of(model) else None


async def resume(visit: Visit) -> ASGIApp:
    """GET /v1/requests/{id}/events: the events of a resumable call after `Last-Event-ID`, or all of them.

    204 once the client has them all, which tells an EventSource to stop asking.
    """
    state = visit.state
    recording = state.recordings.find(visit.caller.key_id, visit.path_param("request_id"))
    after = read_last_event_id(visit.header(b"last-event-id"))
    if not recording.is_numbered:
        raise InvalidRequest("this request has a whole answer, not events; send it again with its Idempotency-Key")
    if recording.is_over and recording.error is None and after == recording.last:
        return Response(status_code=204)
    return EventStream(recording.read(after), visit.request_id, headers=recording.headers)


def read_last_event_id(value: str | None) -> int:
    """Return the number of the last event that a client has had; 0 if it has had none."""
    if value is None or value == "":
        return 0
    if not _NUMBER.fullmatch(value):
        raise InvalidRequest(
            f"Last-Event-ID is '{value[:40]}'; it is a whole number, the id of the last event received",
            param="Last-Event-ID",
        )
    return int(value)


async def _recorded(visit: Visit, state: ApiState, body: Body, begin: Begin, wish: _Wish) -> ASGIApp:
    """Answer from a recording: the one under the idempotency key, or a new one."""
    owner, request_id = visit.caller.key_id, visit.request_id
    fingerprint = _fingerprint(visit.path, body)
    recording = None if wish.key is None else state.recordings.find_key(owner, wish.key, fingerprint)
    is_replay = recording is not None
    after = 0 if recording is None else read_last_event_id(visit.header(b"last-event-id"))
    if recording is None:
        state.calls.check_open()
        recording = state.recordings.open(
            owner, request_id, grace_s=wish.grace_s, key=wish.key, fingerprint=fingerprint
        )
        call = state.calls.open(visit.caller, request_id, visit.span, visit.trail)
        visit.call = call
        recording.headers = call.headers
        call.grace_s = wish.grace_s
        recording.start(_events(call, begin, is_stream=bool(body.stream)), is_numbered=bool(body.stream))
    headers = ChainMap(dict(_REPLAYED) if is_replay else {}, recording.headers)  # those of the call are still to come
    if body.stream:
        return EventStream(recording.read(after), request_id, headers=headers)
    payload = await until_disconnect(visit.scope, visit.receive, _whole(recording))
    return JsonReply(payload, headers)


async def _events(call: Call, begin: Begin, *, is_stream: bool) -> AsyncGenerator[bytes, None]:
    """Yield what a recorded call says: its events, or its whole answer as one."""
    try:
        with call.cut_off_here():
            wire = await begin(call)
            if not is_stream:
                yield _encoder.encode(await wire.reply())
                return
            async with aclosing(wire.events()) as events:
                async for each in events:
                    yield each
    except HeadraceError as err:
        call.tell_headers(err)
        raise
    finally:
        call.close()


async def _whole(recording: Recording) -> bytes:
    """Wait for a recorded whole answer."""
    async with aclosing(recording.read(0)) as frames:
        return b"".join([frame async for frame in frames])


def _read_wish(visit: Visit, state: ApiState) -> _Wish:
    """Read the headers. Raises InvalidRequest naming header, value and limit."""
    key = visit.header(b"idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"Idempotency-Key has {len(key)} characters; it must be 1 to 255 printable ones without spaces",
            param="Idempotency-Key",
        )
    text = visit.header(b"x-resume-grace")
    if text is None:
        return _NO_WISH if key is None else _Wish(0.0, key)
    try:
        grace_s = float(text)
    except ValueError:
        grace_s = math.nan
    limit_s = state.recordings.limits.max_grace_s
    if not 0 <= grace_s <= limit_s:
        raise InvalidRequest(
            f"X-Resume-Grace is '{text[:40]}'; it is a number of seconds from 0 to {limit_s:g} (resume.max_grace_s)",
            param="X-Resume-Grace",
        )
    return _Wish(grace_s, key)


def _fingerprint(path: str, body: Body) -> bytes:
    """Return what two calls under one key must have in common."""
    return hashlib.sha256(path.encode() + b"\n" + msgspec.json.encode(body, order="deterministic")).digest()
