"""Deltas of one request: watched for failure while they stream, or collected into a whole answer.

Owns nothing; used by the chat and the completions wire, so that both close upstreams and tell failures alike.
Invariant: the upstream's iterator is closed on every way out, which aborts work that nobody waits for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from headrace.api.openai_replies import PromptLogprobs, PromptToken, UsageReply, usage_reply
from headrace.core.delta import Delta, FinishReason, PositionLogprobs, ToolCallDelta, Usage
from headrace.core.errors import DeadlineExpired, RequestFailed
from headrace.core.protocols import Upstream
from headrace.core.request import Request


@dataclass(slots=True)
class ChoiceAnswer:
    """One finished choice."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish: FinishReason = FinishReason.ABORT
    stop_match: str | int | None = None
    others: list[Delta] = field(default_factory=list)  # those with more than text

    @property
    def text(self) -> str:
        """Return the choice's whole text."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """Return what the model thought first."""
        return "".join(delta.reasoning for delta in self.others)

    @property
    def refusal(self) -> str:
        """Return in which words the model refused."""
        return "".join(delta.refusal for delta in self.others)

    @property
    def tool_calls(self) -> list[ToolCallDelta]:
        """Return the calls, each whole, in order."""
        whole: dict[int, ToolCallDelta] = {}
        for piece in (piece for delta in self.others for piece in delta.tool_calls):
            so_far = whole.get(piece.index, ToolCallDelta(piece.index))
            whole[piece.index] = ToolCallDelta(
                piece.index,
                so_far.call_id or piece.call_id,
                so_far.name + piece.name,
                so_far.arguments + piece.arguments,
            )
        return [whole[index] for index in sorted(whole)]


@dataclass(slots=True)
class Answer:
    """All choices of one request, in index order."""

    choices: list[ChoiceAnswer]
    usage: Usage
    prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()


async def stream(upstream: Upstream, request: Request) -> AsyncGenerator[Delta, None]:
    """Yield the request's deltas; raise for the first choice that failed.

    DeadlineExpired, RequestFailed, or what a cut says: the server itself ended the request, which may be sent again.
    """
    deltas = upstream.generate(request)
    try:
        async for delta in deltas:
            if delta.finish is not None:
                check_ending(delta)
            yield delta
    finally:
        await close(deltas)


async def close(deltas: AsyncIterator[Delta]) -> None:
    """End an upstream's answer, and so the work that nobody waits for any more."""
    if isinstance(deltas, AsyncGenerator):
        await deltas.aclose()


def check_ending(delta: Delta) -> None:
    """Raise what `stream` raises if a choice's last delta says that it failed."""
    if delta.finish is FinishReason.EXPIRED:
        raise DeadlineExpired(delta.error or "the deadline passed before the first token", param="deadline_ms")
    if delta.finish is FinishReason.ERROR and delta.cut is not None:
        raise delta.cut.error(delta.error or "the server ended this request; send it again")
    if delta.finish is FinishReason.ERROR:
        raise RequestFailed(delta.error or "the engine could not finish this request; send it again")


async def collect(upstream: Upstream, request: Request) -> Answer:
    """Wait for the whole answer. Raises what `stream` raises."""
    answer = Answer([ChoiceAnswer() for _ in range(request.n)], Usage(prompt_tokens=0, completion_tokens=0))
    deltas = upstream.generate(request)
    try:
        async for delta in deltas:
            choice = answer.choices[delta.index]
            if delta.finish is not None:
                check_ending(delta)
                choice.finish, choice.stop_match = delta.finish, delta.stop_match
            choice.texts.append(delta.text)
            if delta.logprobs:
                choice.logprobs.extend(delta.logprobs)
            if delta.token_ids:
                choice.token_ids.extend(delta.token_ids)
            if delta.reasoning or delta.tool_calls or delta.refusal or delta.signature or delta.foreign:
                choice.others.append(delta)
            answer.prompt_logprobs = answer.prompt_logprobs or delta.prompt_logprobs
            answer.usage = delta.usage or answer.usage
    finally:
        await close(deltas)
    return answer


def running_usage(num_prompt: int, num_generated: int) -> UsageReply:
    """Spell the usage of a stream that is still running; cached tokens are known at its end only."""
    return usage_reply(Usage(prompt_tokens=num_prompt, completion_tokens=num_generated))


def prompt_logprobs_reply(scored: tuple[PositionLogprobs | None, ...]) -> PromptLogprobs | UnsetType:
    """Spell prompt logprobs in vLLM's shape: token id → logprob, rank, text; None for the first token."""
    if not scored:
        return UNSET
    reply: PromptLogprobs = []
    for position in scored:
        if position is None:
            reply.append(None)
            continue
        ranks = {token.token_id: i + 1 for i, token in enumerate(position.top)}
        tokens = (position.chosen, *position.top)
        reply.append({str(t.token_id): PromptToken(t.logprob, ranks.get(t.token_id), t.text) for t in tokens})
    return reply
