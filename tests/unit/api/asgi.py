"""An ASGI client that can read a little of a stream and then be gone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Connection:
    """One HTTP exchange with an application, on the test's own event loop."""

    app: Any
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stall: asyncio.Event | None = None  # while it is not set, the client takes nothing after the first event
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def open(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Connection:
        raw = b"" if body is None else json.dumps(body).encode()
        messages = [{"type": "http.request", "body": raw, "more_body": False}]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
        }

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                self.body += message["body"]
            self._news.set()
            if self.stall is not None and self.events:
                await self.stall.wait()

        self._task = asyncio.ensure_future(self.app(scope, receive, send))
        self._task.add_done_callback(lambda _: self._news.set())
        return self

    @property
    def events(self) -> list[tuple[int | None, str]]:
        """What has come: (id, data) of each whole event."""
        found = []
        for frame in self.body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in frame.splitlines())
            found.append((int(fields["id"]) if "id" in fields else None, fields["data"]))
        return found

    @property
    def text(self) -> str:
        """The text of all chunks so far."""
        chunks = [json.loads(data) for _, data in self.events if data != "[DONE]"]
        choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        return "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in choices)

    async def until(self, num_events: int) -> None:
        """Wait for that many events."""
        assert self._task is not None
        async with asyncio.timeout(60):
            while len(self.events) < num_events and not self._task.done():
                self._news.clear()
                await self._news.wait()

    async def leave(self) -> None:
        """Close the connection."""
        self._gone.set()
        await self.ended()

    async def ended(self) -> Connection:
        """Wait for the whole reply."""
        assert self._task is not None
        async with asyncio.timeout(60):
            await self._task
        return self
