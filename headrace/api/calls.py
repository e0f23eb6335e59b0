"""The generating calls in progress, each under its owner and its exact id, so that it can be ended from outside.

Owns: the live calls, and how the last few ended, which makes ending one idempotent. Network thread only.
Invariant: only who started a call can find it: ids of different keys never meet, and no id is matched by its beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import NamedTuple, TypeVar

import msgspec

from headrace.api.answer_cache import AnswerCache
from headrace.api.ladder import AS_ASKED, HEADER, Plan
from headrace.api.served import Models, RemoteModel, ServedModel
from headrace.api.trail import Trail
from headrace.core.caller import Caller
from headrace.core.delta import Delta, Usage
from headrace.core.errors import HeadraceError, RequestCancelled, ServerDraining, UnknownRequest
from headrace.core.request import Knock, Request, RequestId
from headrace.core.tracing import Span
from headrace.econ import show_usd

T = TypeVar("T")
CallId = tuple[str, str]  # owner, request id

_MOST_REMEMBERED = 4096
_CANCELLED = "the request was cancelled"
_PREFIXES = ("chatcmpl-", "cmpl-", "msg_")  # what replies put before the request id


class CallStatus(StrEnum):
    """How a call stands, or ended."""

    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class _Ended(NamedTuple):
    """What is remembered of a call that has ended."""

    status: CallStatus
    request_ids: tuple[RequestId, ...]
    model: str
    usages: tuple[Usage, ...]  # of its requests, those that told one


class Call:
    """One call and the requests it has made of a model. Implements `core.protocols.Upstream` for its wire."""

    def __init__(self, calls: Calls, call_id: CallId, caller: Caller, span: Span | None, trail: Trail | None) -> None:
        self.call_id = call_id
        self.headers: dict[str, str] = {}  # of the reply; complete before its first delta but for the cost
        self._usages: list[Usage] = []  # of its requests that have told theirs
        self.is_cancelled = False
        self.grace_s = 0.0  # for which its readers may be away
        self._calls = calls
        self._caller = caller
        self._span = span
        self._trail = None if trail is None else trail.hold()
        self._model: ServedModel | RemoteModel | None = None
        self._requests: Sequence[Request | Knock] = ()
        self._task: asyncio.Task[object] | None = None
        self._plan = AS_ASKED
        self._cache: AnswerCache | None = None
        self._question: bytes | None = None
        self._num_asked = 0
        self.is_ttft_refusal = False

    @property
    def caller(self) -> Caller:
        """Return who calls."""
        return self._caller

    def has_cached(self, model: str) -> bool:
        """Say whether this question was answered before by `model`, for this caller's eyes."""
        if self._cache is None or self._question is None:
            return False
        may_ask = self._caller.models is None or model in self._caller.models
        return may_ask and self._cache.find(self._question, 0) is not None

    def use_cache(self, cache: AnswerCache, question: bytes | None) -> None:
        """Keep the answers to a question, and give them again where the plan is to."""
        self._cache, self._question = cache, question

    def follow(self, plan: Plan) -> None:
        """Be answered as `plan` says from now on."""
        self._plan = plan
        self._num_asked = 0
        self.is_ttft_refusal = False
        self.headers.clear()
        if plan.told:
            self.headers[HEADER] = plan.told
        if self._trail is not None:
            self._trail.begin_anew(plan.told)

    def find(self, models: Models, name: str | None) -> ServedModel | RemoteModel:
        """Return the model that answers: the one asked, or the plan's. Raises what `Models.find` raises."""
        step = self._plan.step
        return models.find(step.model if step is not None and step.model else name)

    def fit(self, request: Request) -> Request:
        """Return the request with no more output than the plan gives."""
        step = self._plan.step
        if step is None or step.kind != "shorter" or request.stop.max_tokens <= step.number:
            return request
        return shortened(request, step.number)

    def knock(self, model: ServedModel, knock: Knock) -> None:
        """Ask a model for room before the prompt is read. Raises Overloaded, DeadlineUnreachable or EngineDead."""
        self.bind(model, [knock])
        if model.check_room is None or (self._plan.step is not None and self._plan.step.kind == "cache"):
            return
        knock = msgspec.structs.replace(knock, tenant=self._caller.tenant)
        model.check_room(knock)
        most_s = self._plan.most_ttft_s
        if most_s is not None and (knock.deadline_s is None or knock.deadline_s > most_s):
            self.is_ttft_refusal = True
            model.check_room(msgspec.structs.replace(knock, deadline_s=most_s))
            self.is_ttft_refusal = False

    def bind(self, model: ServedModel | RemoteModel, requests: Sequence[Request | Knock]) -> None:
        """Say what the call asks of whom."""
        self._model, self._requests = model, requests
        if self._trail is not None:
            self._trail.aim(model.name)

    @property
    def model(self) -> str:
        """Return the name of the model that it asks; empty before it is known."""
        return "" if self._model is None else self._model.name

    @property
    def usages(self) -> tuple[Usage, ...]:
        """Return what its requests have told of their usage so far."""
        return tuple(self._usages)

    def tell_headers(self, err: HeadraceError) -> None:
        """Let the reply that `err` becomes carry the call's headers, what it cost so far among them."""
        err.headers = (*self.headers.items(), *err.headers)

    @property
    def request_ids(self) -> list[RequestId]:
        """Return the ids of the requests that the call asks of its model."""
        return [request.request_id for request in self._requests]

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Pass a request on in its caller's name. Raises RequestCancelled if the call was cancelled before."""
        if self.is_cancelled or self._model is None:
            raise RequestCancelled("the request was cancelled before it began")
        own = _of_caller(request, self._caller, self._model.shares_prefixes)
        if self.grace_s:
            own = msgspec.structs.replace(own, grace_s=self.grace_s)
        if self._span is not None:
            own = msgspec.structs.replace(own, span=self._span)
        if self._trail is not None:
            self._trail.ask(own)
        index, self._num_asked = self._num_asked, self._num_asked + 1
        if self._cache is None or self._question is None:
            return self._note(self._model.upstream.generate(own))
        if self._plan.step is not None:
            kept = self._cache.find(self._question, index) if self._plan.step.kind == "cache" else None
            return self._note(self._model.upstream.generate(own) if kept is None else _told_again(kept))
        return self._note(self._kept(self._model.upstream.generate(own), own, index))

    async def _kept(self, deltas: AsyncIterator[Delta], request: Request, index: int) -> AsyncIterator[Delta]:
        """Pass deltas on and keep a whole answer."""
        seen: list[Delta] = []
        try:
            async for delta in deltas:
                seen.append(delta)
                yield delta
        finally:
            if isinstance(deltas, AsyncGenerator):
                await deltas.aclose()
        if self._cache is not None and self._question is not None:
            self._cache.keep(self._question, index, seen, request.n)

    async def _note(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        trail = self._trail
        try:
            async for delta in deltas:
                if delta.headers:
                    self.headers.update(delta.headers)
                if trail is not None:
                    trail.see(delta)
                if delta.usage is not None:
                    self._usages.append(delta.usage)
                    cost_nano = delta.usage.cost_nano
                    if cost_nano is not None:
                        if len(self._usages) > 1:
                            cost_nano = sum(usage.cost_nano or 0 for usage in self._usages)
                        self.headers["x-headrace-cost-usd"] = show_usd(cost_nano)
                yield delta
        except HeadraceError as err:
            if trail is not None:
                trail.fail(err)
            raise
        finally:
            if isinstance(deltas, AsyncGenerator):
                await deltas.aclose()

    async def run(self, work: Coroutine[object, object, T]) -> T:
        """Do the call's work in this task. Raises RequestCancelled if it had to be cut off."""
        task = self._task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if self._is_cut_off(task):
                raise RequestCancelled(_CANCELLED) from None
            raise

    @contextmanager
    def cut_off_here(self) -> Iterator[None]:
        """Let `cancel` cut off the task that runs the body, as RequestCancelled."""
        task = self._task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if self._is_cut_off(task):
                raise RequestCancelled(_CANCELLED) from None
            raise

    def _is_cut_off(self, task: asyncio.Task[object] | None) -> bool:
        """Say whether it was `cancel` that cut off a task, and clear that of it."""
        if not self.is_cancelled or task is None:
            return False
        task.uncancel()
        return True

    def cancel(self) -> None:
        """End the call: an engine ends its choices as `abort`, other work is cut off. Idempotent."""
        if self.is_cancelled:
            return
        self.is_cancelled = True
        abort = None if self._model is None else self._model.abort
        num_aborted = 0 if abort is None else sum([abort(request.request_id) for request in self._requests])
        if not num_aborted and self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Say that the call has ended. Idempotent."""
        self._calls.forget(self)
        trail, self._trail = self._trail, None
        if trail is not None:
            trail.release(time.time_ns())


class Calls:
    """Live calls by id. One id may have several, when a client sends the same id twice."""

    def __init__(self) -> None:
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._live: dict[CallId, list[Call]] = {}
        self._ended: OrderedDict[CallId, _Ended] = OrderedDict()

    def __len__(self) -> int:
        """Count the live calls."""
        return sum(map(len, self._live.values()))

    def open(self, caller: Caller, request_id: str, span: Span | None = None, trail: Trail | None = None) -> Call:
        """Begin a call; `close` it on every way out. Its requests' stages are told to `span`, it itself to `trail`.

        Raises what `check_open` raises.
        """
        self.check_open()
        self._is_empty.clear()
        call = Call(self, (caller.key_id, request_id), caller, span, trail)
        self._live.setdefault(call.call_id, []).append(call)
        return call

    def check_open(self) -> None:
        """Raise ServerDraining once the server was asked to stop."""
        if self._is_draining:
            raise ServerDraining("the server is shutting down; send the request again once it is back, or elsewhere")

    async def drain(self, timeout_s: float) -> None:
        """Begin no more calls, and wait for the last one to end, at most so long. Idempotent."""
        self._is_draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)

    def cancel(self, owner: str, request_id: str) -> CallStatus:
        """End the owner's calls of exactly this id and say how they stand. Raises UnknownRequest."""
        call_id = self._known_id(owner, request_id)
        live = self._live.get(call_id)
        if live is None:
            return self._ended[call_id].status
        for call in live:
            call.cancel()
        return CallStatus.CANCELLED

    def look(self, owner: str, request_id: str) -> tuple[CallStatus, str, list[Usage]]:
        """Say how the owner's calls of this id stand, of which model, and what they used. Raises UnknownRequest."""
        call_id = self._known_id(owner, request_id)
        live = self._live.get(call_id)
        if live is None:
            ended = self._ended[call_id]
            return ended.status, ended.model, list(ended.usages)
        return CallStatus.RUNNING, live[-1].model, [usage for call in live for usage in call.usages]

    def request_ids(self, owner: str, request_id: str) -> list[RequestId]:
        """Return what the owner's calls of this id have asked of models, or asked last. Raises UnknownRequest."""
        call_id = self._known_id(owner, request_id)
        live = self._live.get(call_id)
        if live is None:
            return list(self._ended[call_id].request_ids)
        return [found for call in live for found in call.request_ids]

    def forget(self, call: Call) -> None:
        """Take a call that has ended off the list."""
        live = self._live.get(call.call_id, [])
        if call not in live:
            return
        live.remove(call)
        if not live:
            del self._live[call.call_id]
            if not self._live:
                self._is_empty.set()
        status = CallStatus.CANCELLED if call.is_cancelled else CallStatus.FINISHED
        self._ended[call.call_id] = _Ended(status, tuple(call.request_ids), call.model, call.usages)
        self._ended.move_to_end(call.call_id)
        if len(self._ended) > _MOST_REMEMBERED:
            self._ended.popitem(last=False)

    def _known_id(self, owner: str, request_id: str) -> CallId:
        for spelled in spellings(request_id):
            if (owner, spelled) in self._live or (owner, spelled) in self._ended:
                return owner, spelled
        raise UnknownRequest(f"no request '{request_id}' of this API key is running or has ended lately")


async def _told_again(deltas: Sequence[Delta]) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


def shortened(request: Request, max_tokens: int) -> Request:
    """Return the request with at most `max_tokens` of output a choice, for engines and upstreams alike."""
    given = request.given
    if given is not None:
        least = None if given.min_tokens is None else min(given.min_tokens, max_tokens)
        given = msgspec.structs.replace(given, max_tokens=max_tokens, min_tokens=least)
    sampling = request.sampling
    if sampling.min_tokens > max_tokens:
        sampling = msgspec.structs.replace(sampling, min_tokens=max_tokens)
    stop = msgspec.structs.replace(request.stop, max_tokens=max_tokens)
    return msgspec.structs.replace(request, sampling=sampling, stop=stop, given=given)


def _of_caller(request: Request, caller: Caller, shares_prefixes: bool) -> Request:
    """Say whose share of the engine and whose money a request takes, and whose cached prefixes it may find."""
    if not caller.tenant and not caller.task:
        return request
    namespace = request.namespace if shares_prefixes or not caller.tenant else f"tenant/{caller.tenant}"
    return msgspec.structs.replace(
        request, tenant=caller.tenant, key_id=caller.key_id, task=caller.task, namespace=namespace
    )


def spellings(request_id: str) -> list[str]:
    """Return the request ids that `request_id` may mean: itself, or what follows a reply's prefix."""
    return [request_id, *(request_id.removeprefix(p) for p in _PREFIXES if request_id.startswith(p))]
