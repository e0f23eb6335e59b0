"""Chat with a server at a URL over the OpenAI wire: ours or any other.

Owns one HTTP connection pool. Failures become typed errors that name the URL and what to do.
"""

from __future__ import annotations

from collections.abc import Generator

import httpx
import msgspec

from headrace.app.llm import SamplingParams
from headrace.core.errors import HeadraceError, RequestFailed

_CONNECT_TIMEOUT_S = 5.0


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Error(msgspec.Struct):
    message: str


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card]


_event_decoder = msgspec.json.Decoder(_Event)


class RemoteChat:
    """A server that answers conversations. `model` None takes the first that it serves."""

    def __init__(self, url: str, model: str | None, api_key: str | None, options: SamplingParams) -> None:
        base = url.rstrip("/").removesuffix("/v1") + "/v1/"
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
        self._client = httpx.Client(base_url=base, headers=headers, timeout=timeout, trust_env=False)
        self._options = options
        try:
            self.name = model or self._first_model()
        except HeadraceError:
            self._client.close()
            raise

    def __enter__(self) -> RemoteChat:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def answer(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        """Yield the answer's text. Raises RequestFailed with what the server said."""
        body = {"model": self.name, "messages": messages, "stream": True, **self._options}
        try:
            with self._client.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise self._refused(response.status_code, response.read())
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield from self._pieces(line.removeprefix("data: "))
        except httpx.HTTPError as err:
            raise self._unreachable(err) from err

    def _pieces(self, payload: str) -> Generator[str, None, None]:
        event = _event_decoder.decode(payload)
        if event.error is not None:
            raise RequestFailed(f"the server ended the answer: {event.error.message}")
        for choice in event.choices:
            if choice.delta.content:
                yield choice.delta.content

    def _first_model(self) -> str:
        try:
            response = self._client.get("models")
        except httpx.HTTPError as err:
            raise self._unreachable(err) from err
        if response.status_code != 200:
            raise self._refused(response.status_code, response.content)
        try:
            return msgspec.json.decode(response.content, type=_Models).data[0].id
        except (msgspec.DecodeError, IndexError) as err:
            raise RequestFailed(f"{self._client.base_url}models does not list models; check --url") from err

    def _unreachable(self, err: httpx.HTTPError) -> RequestFailed:
        return RequestFailed(f"no answer from {self._client.base_url}: {err}; is the server running?")

    def _refused(self, status: int, content: bytes) -> HeadraceError:
        try:
            event = _event_decoder.decode(content)
            said = event.error.message if event.error is not None else ""
        except msgspec.DecodeError:
            said = ""
        return RequestFailed(f"{self._client.base_url} answered {status}: {said or 'no reason given'}")
