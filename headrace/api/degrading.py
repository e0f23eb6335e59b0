"""One call on its way down a ladder: as asked first, then step by step until something answers.

Owns which plan a call follows. Used by `api.exchange` for models that have a ladder; a wire like any other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Protocol

import msgspec

from headrace.api.answer_cache import question_key
from headrace.api.anthropic_types import MessagesBody
from headrace.api.calls import Call
from headrace.api.ladder import AS_ASKED, HEADER, Ladders, Plan, Reason, Step
from headrace.api.openai_types import GenerationBody
from headrace.core.errors import HeadraceError, Overloaded, RequestCancelled, UpstreamUnavailable

Body = GenerationBody | MessagesBody


class Wire(Protocol):
    """Spells one call's answer."""

    def events(self) -> AsyncGenerator[bytes, None]:
        """Yield framed events."""
        ...

    async def reply(self) -> msgspec.Struct:
        """Return the whole answer."""
        ...


class Descent:
    """Answers a call by the first plan that works. `model` is the one that was asked."""

    def __init__(
        self, call: Call, begin: Callable[[Call], Awaitable[Wire]], ladders: Ladders, model: str, path: str, body: Body
    ) -> None:
        self._call = call
        self._begin = begin
        self._ladders = ladders
        self._model = model
        self._body = body
        self._failure: HeadraceError | None = None
        call.use_cache(ladders.answers, question_key(call.caller, path, body) if self._has_cache else None)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of the first plan that has any. Raises the refusal if none does."""
        for plan in self._plans():
            has_begun = False
            try:
                wire = await self._follow(plan)
                async with aclosing(wire.events()) as events:
                    async for event in events:
                        if not has_begun:
                            has_begun = True
                            self._count(plan)
                        yield event
                self._ladders.note_reply(self._call.caller, self._model, self._call.headers)
                return
            except HeadraceError as failure:
                if has_begun or not self._may_go_on(plan, failure):
                    raise
        raise self._refusal()

    async def reply(self) -> msgspec.Struct:
        """Return the answer of the first plan that has one. Raises the refusal if none has."""
        for plan in self._plans():
            try:
                wire = await self._follow(plan)
                reply = await wire.reply()
                self._count(plan)
                self._ladders.note_reply(self._call.caller, self._model, self._call.headers)
                return reply
            except HeadraceError as failure:
                if not self._may_go_on(plan, failure):
                    raise
        raise self._refusal()

    @property
    def _has_cache(self) -> bool:
        return any(step.kind == "cache" for step in self._ladders.of(self._model))

    def _plans(self) -> Iterator[Plan]:
        """Yield what to try next; `_failure` tells how the one before ended."""
        reason: Reason = "budget"
        if not self._ladders.is_warned(self._call.caller, self._model):
            yield Plan(most_ttft_s=self._ladders.most_ttft_s)
            reason = "ttft" if self._call.is_ttft_refusal else "overload"
        first = self._failure
        for step in self._ladders.of(self._model):
            if step.kind == "shed":
                if self._is_shed(step):
                    raise self._shed(step, reason, first)
            elif step.kind != "cache" or self._call.has_cached(self._model):
                yield Plan(step, reason)
        self._failure = first
        if reason != "overload":
            yield AS_ASKED

    async def _follow(self, plan: Plan) -> Wire:
        self._call.follow(plan)
        return await self._begin(self._call)

    def _may_go_on(self, plan: Plan, failure: HeadraceError) -> bool:
        """Note a refusal; say whether the next plan may be tried: as asked, only want of room leads on."""
        self._failure = failure
        if isinstance(failure, RequestCancelled):
            return False
        return plan.step is not None or isinstance(failure, (Overloaded, UpstreamUnavailable))

    def _count(self, plan: Plan) -> None:
        if plan.step is not None:
            self._ladders.count(self._model, plan.step, plan.reason)

    def _is_shed(self, step: Step) -> bool:
        if not isinstance(self._body, GenerationBody):
            return False
        return self._body.service_tier == "flex" or (self._body.priority or 0) >= step.number

    def _shed(self, step: Step, reason: Reason, cause: HeadraceError | None) -> HeadraceError:
        told = Plan(step, reason).told
        self._ladders.count(self._model, step, reason)
        shed = Overloaded(
            f"requests of priority {step.number} and later are not served now ({reason}); try again later, or with a "
            "lower 'priority'",
            retry_after_s=(cause.retry_after_s if cause is not None else None) or 1.0,
        )
        shed.headers = ((HEADER, told),)
        self._call.follow(Plan(step, reason))
        return shed

    def _refusal(self) -> HeadraceError:
        assert self._failure is not None
        self._call.follow(AS_ASKED)  # nothing was given less after all
        return self._failure
