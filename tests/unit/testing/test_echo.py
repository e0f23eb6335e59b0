from __future__ import annotations

import asyncio

from headrace.core.delta import Delta, FinishReason
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.testing import ByteTokenizer, EchoUpstream


def echo(text: str, max_tokens: int, n: int = 1) -> list[Delta]:
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt=tuple(text.encode()),
        sampling=SamplingParams(),
        stop=StopRules(max_tokens=max_tokens),
        n=n,
    )

    async def collect() -> list[Delta]:
        return [delta async for delta in EchoUpstream(ByteTokenizer()).generate(request)]

    return asyncio.run(collect())


def test_the_prompt_comes_back_whole_for_each_choice() -> None:
    deltas = echo("wäter", 100, n=2)
    for index in range(2):
        assert "".join(d.text for d in deltas if d.index == index) == "wäter"
    assert [d.finish for d in deltas if d.finish] == [FinishReason.STOP] * 2
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 12


def test_max_tokens_cuts_the_echo() -> None:
    deltas = echo("water", 3)
    assert "".join(d.text for d in deltas) == "wat"
    assert deltas[-1].finish is FinishReason.LENGTH
