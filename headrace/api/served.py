"""What is served: models by name, each with its upstream, tokenizer, template and limits.

Owns the list of models, which `app.serving` publishes as they become ready.
Invariant: once complete, `Models` holds at least one model; the first is the default for requests that name none.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from headrace.core.errors import InvalidRequest, ModelLoading, UnknownModel
from headrace.core.protocols import Upstream
from headrace.core.request import Knock, Request, RequestId, SamplingParams
from headrace.core.why import Explanation
from headrace.text import ChatTemplate, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model behind the API.

    name         what requests call it
    root         where its weights came from
    template     None for base models: chat is refused
    max_context  prompt + output, in tokens
    created      Unix seconds at which it became ready
    defaults     sampling for requests that do not say; from the model's own generation config
    fingerprint  names the weights that are loaded and how
    abort        ends a request by its id and says whether it was running; None: its iterator has to be closed
    shares_prefixes  tenants find each other's cached prefixes
    explain      says why a request is where it is; None: nobody knows
    check_room   raises Overloaded for what would be refused whatever its prompt; None: it cannot be told before
    """

    name: str
    root: str
    upstream: Upstream
    tokenizer: Tokenizer
    template: ChatTemplate | None
    max_context: int
    created: int
    defaults: SamplingParams = field(default_factory=SamplingParams)
    abort: Callable[[RequestId], bool] | None = None
    fingerprint: str | None = None
    shares_prefixes: bool = False
    explain: Callable[[RequestId], Awaitable[Explanation | None]] | None = None
    check_room: Callable[[Knock], None] | None = None

    def stop_reason(self, match: str | int | None) -> str | int | None:
        """Return what the wire tells of a stop: the caller's own string or token, not the model's end token."""
        return None if match in self.tokenizer.eos_ids else match

    def check_token_ids(self, token_ids: Iterable[int], param: str) -> None:
        """Raise InvalidRequest naming the first id outside the vocabulary."""
        limit = self.tokenizer.vocab_size
        for token_id in token_ids:
            if not 0 <= token_id < limit:
                raise InvalidRequest(
                    f"token id {token_id} in '{param}' is outside the vocabulary of '{self.name}' (0 to {limit - 1})",
                    param=param,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model behind remote upstreams: no tokenizer and no template here, so requests travel as words.

    max_context  prompt + output in tokens, where the configuration tells
    abort        none: its iterator has to be closed
    count_tokens  counts a prompt's tokens at the upstream; None: it cannot
    shares_prefixes  its prefixes are cached elsewhere
    """

    name: str
    root: str
    upstream: Upstream
    created: int
    max_context: int | None = None
    count_tokens: Callable[[Request], Awaitable[int]] | None = None
    abort: Callable[[RequestId], bool] | None = None
    fingerprint: str | None = None
    shares_prefixes: bool = False
    explain: Callable[[RequestId], Awaitable[Explanation | None]] | None = None

    def stop_reason(self, match: str | int | None) -> str | int | None:
        """Return what the wire tells of a stop: what the upstream told."""
        return match


class Models:
    """The served models, by name. `loading` says what is still going on; None once all models are there."""

    def __init__(
        self,
        models: Iterable[ServedModel | RemoteModel] = (),
        loading: Callable[[], str | None] = lambda: None,
        front: Callable[[Upstream], Upstream] = lambda upstream: upstream,
    ) -> None:
        """Serve `models`. `front` puts the gateway's stages before each one's upstream."""
        self._front = front
        self._by_name: dict[str, ServedModel | RemoteModel] = {}
        for model in models:
            self.publish(model)
        self._loading = loading

    def publish(self, model: ServedModel | RemoteModel) -> None:
        """Serve a model from now on, in place of the one of its name if there is one."""
        self._by_name[model.name] = replace(model, upstream=self._front(model.upstream))

    def __iter__(self) -> Iterator[ServedModel | RemoteModel]:
        """Yield those of this process first, the default one foremost."""
        return iter(sorted(self._by_name.values(), key=lambda model: isinstance(model, RemoteModel)))

    def find_local(self, name: str | None) -> ServedModel:
        """Return a model whose tokenizer is here. Raises what `find` raises, and InvalidRequest for a remote one."""
        model = self.find(name)
        if isinstance(model, RemoteModel):
            raise InvalidRequest(
                f"'{model.name}' is served by a remote upstream; its tokenizer is not here", param="model"
            )
        return model

    def find(self, name: str | None) -> ServedModel | RemoteModel:
        """Return the model called `name`, or the default for None.

        Raises UnknownModel with the nearest names, ModelLoading while it may still come.
        """
        found = self._by_name.get(name) if name is not None else self._default()
        if found is not None:
            return found
        loading = self._loading()
        if loading is not None or name is None:
            which = "no model is" if name is None else f"model '{name}' is not"
            raise ModelLoading(f"{which} ready yet: {loading or 'nothing is served'}; try again in a few seconds")
        near = difflib.get_close_matches(name, self._by_name, n=3) or list(self._by_name)[:8]
        names = ", ".join(f"'{known}'" for known in near)
        raise UnknownModel(f"model '{name}' is not served here; served: {names}", param="model")

    def _default(self) -> ServedModel | RemoteModel | None:
        """Return the first model; a remote one only once no local one can come before it."""
        first = next(iter(self), None)
        return None if isinstance(first, RemoteModel) and self._loading() is not None else first
