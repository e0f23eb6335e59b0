"""A whole API over fakes, called in process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from headrace.api import ApiState, Models, ServedModel, build_app
from headrace.core.errors import TemplateFailed
from headrace.core.health import HealthState, ServerHealth
from headrace.core.protocols import Upstream
from headrace.testing import ByteTokenizer, EchoUpstream, VirtualClock


class PlainTemplate:
    """Writes contents one after the other; refuses the word `refuse`."""

    def render(
        self, messages: list[dict[str, str]], *, tools: Any = None, add_generation_prompt: bool = True, **vars: Any
    ) -> str:
        if any(message["content"] == "refuse" for message in messages):
            raise TemplateFailed("the template refuses these messages: roles must alternate")
        text = "".join(f"{message['role'][0]}:{message['content']}\n" for message in messages)
        return text + ("a:" if add_generation_prompt else "") + str(vars.get("tail", ""))


@dataclass
class Recorder:
    """Passes requests on to an upstream and remembers them."""

    inner: Upstream
    requests: list[Any] = field(default_factory=list)

    def generate(self, request: Any) -> Any:
        self.requests.append(request)
        return self.inner.generate(request)


@dataclass
class Api:
    """One application and the upstream behind it."""

    app: Any
    upstream: Recorder
    health: list[ServerHealth]

    def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        import asyncio

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(run())

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.call("POST", path, json=body)

    def chat(self, content: str = "hi", **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", **{"messages": [{"role": "user", "content": content}], **body})


_TEMPLATE = PlainTemplate()
MakeApi = Callable[..., Api]


@pytest.fixture
def make_api() -> MakeApi:
    def make(
        upstream: Upstream | None = None, *, template: Any = _TEMPLATE, check_room: Any = None, **state: Any
    ) -> Api:
        tokenizer: Any = ByteTokenizer()
        recorder = Recorder(upstream or EchoUpstream(tokenizer))
        model = ServedModel(
            name="echo", root="file:echo", upstream=recorder, tokenizer=tokenizer, template=template,
            max_context=64, created=7, check_room=check_room,
        )  # fmt: skip
        health = [ServerHealth(state=HealthState.READY)]
        settings: dict[str, Any] = {
            "models": Models([model]),
            "clock": VirtualClock(),
            "wall_s": lambda: 1700000000.5,
            "health": lambda: health[0],
            "render": lambda: (b"metric 1\n", "text/plain"),
            "version": "1.2.3",
            "max_body_bytes": 4096,
        }
        return Api(build_app(ApiState(**{**settings, **state})), recorder, health)

    return make


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    return make_api()
