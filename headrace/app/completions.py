"""What `LLM` answers: for each prompt one `Completion`, in it one `CompletionOutput` for each answer drawn.

Values only, made from what the engine's facade collected. Names and meaning are those that vLLM's users know; ranks are
known for the alternatives that were asked for, best first from 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headrace.api.answers import Answer, ChoiceAnswer
from headrace.core.delta import FinishReason, PositionLogprobs, TokenLogprob


@dataclass(frozen=True, slots=True)
class Logprob:
    """The natural log of a token's probability, before temperature and filters."""

    logprob: float
    rank: int | None  # None: not among the alternatives asked for
    decoded_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer to a prompt.

    token_ids           with the end token, if one ended it
    logprobs            by position: token id → log probability, of the token and of the alternatives; None: not asked
    cumulative_logprob  of the answer as a whole, None likewise
    stop_reason         the stop string or stop token that ended it; None where the length did
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The answers to one prompt: `text` and `finish_reason` are the first one's, token counts those of all.

    prompt_logprobs  by position, None for the first token; None: not asked for
    """

    outputs: list[CompletionOutput]
    prompt_token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.outputs[0].text

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first answer ended."""
        return self.outputs[0].finish_reason


def completion_of(answer: Answer, prompt: tuple[int, ...], *, has_logprobs: bool) -> Completion:
    """Make the completion of one prompt from all that came."""
    scored = answer.prompt_logprobs
    return Completion(
        outputs=[_output(index, choice, has_logprobs) for index, choice in enumerate(answer.choices)],
        prompt_token_ids=prompt,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        cached_tokens=answer.usage.cached_tokens,
        prompt_logprobs=[None if position is None else _by_token(position) for position in scored] or None,
    )


def _output(index: int, choice: ChoiceAnswer, has_logprobs: bool) -> CompletionOutput:
    return CompletionOutput(
        index=index,
        text=choice.text,
        token_ids=tuple(choice.token_ids),
        finish_reason=choice.finish,
        stop_reason=choice.stop_match,
        cumulative_logprob=sum(position.chosen.logprob for position in choice.logprobs) if has_logprobs else None,
        logprobs=[_by_token(position) for position in choice.logprobs] if has_logprobs else None,
    )


def _by_token(position: PositionLogprobs) -> dict[int, Logprob]:
    """Return a position's tokens by id: the one that stands there first."""
    ranks = {token.token_id: rank for rank, token in enumerate(position.top, 1)}
    return dict(_pairs((position.chosen, *position.top), ranks))


def _pairs(tokens: Iterable[TokenLogprob], ranks: dict[int | None, int]) -> Iterable[tuple[int, Logprob]]:
    for token in tokens:
        if token.token_id is not None:  # of a model that runs here it is known
            yield token.token_id, Logprob(token.logprob, ranks.get(token.token_id), token.text)
