"""`best_of`: draw more answers than are wanted and give the ones that the model finds likeliest.

Owns nothing; a stage over one stream of deltas. All answers continue the same prompt, whose blocks they share.
Rank: mean log probability per token, ends of text included; ties go to the lower index. Usage counts every answer that
was drawn, as OpenAI's does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec

from headrace.core.delta import Delta, FinishReason, PositionLogprobs
from headrace.core.request import Request


class _Drawn:
    """One answer as it grows."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.deltas: list[Delta] = []
        self.total = 0.0
        self.num_tokens = 0

    def add(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.total += sum(position.chosen.logprob for position in delta.logprobs)
        self.num_tokens += len(delta.logprobs)

    @property
    def rank(self) -> tuple[bool, float, int]:
        """Sort failed answers last, then by mean log probability."""
        has_failed = self.deltas[-1].finish is FinishReason.ERROR
        return has_failed, -self.total / max(self.num_tokens, 1), self.index


async def generate_best(
    request: Request, generate: Callable[[Request], AsyncGenerator[Delta, None]]
) -> AsyncGenerator[Delta, None]:
    """Yield the deltas of the best `request.n` of `request.best_of` answers, best first, once all have ended."""
    assert request.best_of is not None
    wants_logprobs = request.sampling.logprobs is not None
    sampling = request.sampling
    if not wants_logprobs:
        sampling = msgspec.structs.replace(sampling, logprobs=0)
    drawn = [_Drawn(index) for index in range(request.best_of)]
    every = msgspec.structs.replace(request, n=request.best_of, best_of=None, sampling=sampling)
    usage = None
    prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()
    async with aclosing(generate(every)) as deltas:
        async for delta in deltas:
            if delta.cut is not None:  # what was drawn so far is no choice of the best
                yield msgspec.structs.replace(delta, index=0)
                return
            drawn[delta.index].add(delta)
            usage = delta.usage or usage
            prompt_logprobs = prompt_logprobs or delta.prompt_logprobs
    best = sorted(drawn, key=lambda answer: answer.rank)[: request.n]
    for index, answer in enumerate(best):
        for place, delta in enumerate(answer.deltas):
            is_last = index == len(best) - 1 and place == len(answer.deltas) - 1
            yield msgspec.structs.replace(
                delta,
                index=index,
                logprobs=delta.logprobs if wants_logprobs else (),
                prompt_logprobs=prompt_logprobs if index == place == 0 else (),
                usage=usage if is_last else None,
            )
