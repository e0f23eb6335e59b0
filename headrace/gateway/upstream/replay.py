"""What one answer has given so far, as tokens: enough for another replica of the same model to go on with it.

Owns the token ids and the text of one answer, bounded by its length. Only plain answers can be replayed: one choice,
text alone, no tools, no logprobs, nothing that was asked of the template's parser.
"""

from __future__ import annotations

from headrace.core.conversation import Conversation
from headrace.core.delta import Delta
from headrace.core.request import Request

# Fields of a chat that have had their effect once its prompt is tokens.
_SPENT = frozenset(("chat_template_kwargs", "add_special_tokens"))


def is_replayable(request: Request) -> bool:
    """Say whether an answer to `request` could be gone on with as a completion of tokens."""
    given, source = request.given, request.source
    return (
        given is not None
        and given.wants_stream
        and isinstance(source, Conversation)
        and request.n == 1
        and not source.tools
        and source.reasoning is None
        and source.response_format is None
        and given.logprobs is None
        and not given.include_stop_text
        and all(name in _SPENT for name, _ in given.extras)
    )


class Replay:
    """Watches the deltas of one answer."""

    def __init__(self, request: Request) -> None:
        self._is_plain = is_replayable(request)
        self._texts: list[str] = []
        self.prompt_ids: tuple[int, ...] = ()
        self.ids: list[int] = []

    @property
    def can_go_on(self) -> bool:
        """Say whether the prompt's tokens and the answer's are known."""
        return self._is_plain and bool(self.prompt_ids) and bool(self.ids)

    @property
    def text(self) -> str:
        """Return what the caller has had."""
        return "".join(self._texts)

    def see(self, delta: Delta) -> None:
        """Note a delta that is handed on."""
        if not self._is_plain:
            return
        if delta.reasoning or delta.refusal or delta.tool_calls or delta.foreign:
            self._is_plain = False
        self.prompt_ids = delta.prompt_token_ids or self.prompt_ids
        self.ids.extend(delta.token_ids)
        self._texts.append(delta.text)
