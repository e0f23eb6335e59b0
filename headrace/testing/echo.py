"""An upstream that answers with the prompt: the shortest thing that speaks the whole delta protocol.

Owns nothing between requests. For tests of the API, the gateway and clients, and for load generation without a model.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator
from typing import Protocol

from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.request import Request


class _TokenBytes(Protocol):
    def token_bytes(self, token_id: int) -> bytes:
        """Return what one id adds to a text."""
        ...


class EchoUpstream:
    """Streams the prompt back, one token per delta, `n` times; ends with STOP, or LENGTH if max_tokens comes first."""

    def __init__(self, tokenizer: _TokenBytes) -> None:
        self._tokenizer = tokenizer

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Stream the answer, giving way to other tasks after each delta."""
        length = min(len(request.prompt), request.stop.max_tokens)
        finish = FinishReason.STOP if length == len(request.prompt) else FinishReason.LENGTH
        usage = Usage(prompt_tokens=len(request.prompt), completion_tokens=length * request.n)
        for index in range(request.n):
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for token_id in request.prompt[:length]:
                text = decoder.decode(self._tokenizer.token_bytes(token_id))
                yield Delta(index=index, text=text, token_ids=(token_id,))
                await asyncio.sleep(0)
            is_last = index == request.n - 1
            text = decoder.decode(b"", final=True)
            yield Delta(index=index, text=text, finish=finish, usage=usage if is_last else None)
