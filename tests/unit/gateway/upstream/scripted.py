"""A server that does what its script says, on a real socket, and pools in front of such servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from headrace.core.conversation import Conversation, Given, Message, TextPart
from headrace.core.delta import Delta
from headrace.core.protocols import Clock
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.core.upstream_settings import FailoverSettings, UpstreamSettings
from headrace.gateway.budgets.price import PriceOf
from headrace.gateway.upstream import Fleet
from tests.patient_loop import LoopClock, run_patiently

Deed = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Call:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """Answers its n-th request with the n-th deed, the last one for ever."""

    deeds: list[Deed]
    calls: list[Call] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # a client has left in the middle of a reply
    num_connections: int = 0
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _serving: list[asyncio.Task[Any]] = field(default_factory=list)

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.append(task)
        try:
            while line := await reader.readline():
                headers = {}
                while (header := (await reader.readline()).decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                self.calls.append(Call(line.decode().split()[1], headers, json.loads(raw) if raw else None))
                deed = self.deeds[min(len(self.calls), len(self.deeds)) - 1]
                await deed(reader, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed.set()
        finally:
            writer.close()


def head(status: int = 200, kind: str = "text/event-stream", **headers: str) -> bytes:
    more = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status(code: int, body: Any = None, **headers: str) -> Deed:
    """A whole reply that is an error."""
    raw = json.dumps({"error": {"message": "scripted"}} if body is None else body).encode()

    async def deed(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(code, "application/json", content_length=str(len(raw)), **headers) + raw)

    return deed


def whole(text: str, **more: Any) -> Deed:
    """A whole chat reply."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return status(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage, **more})


def chunk(text: str | None = None, finish: str | None = None, **delta: Any) -> bytes:
    words = delta if text is None else {"content": text, **delta}
    return event({"choices": [{"index": 0, "delta": words, "finish_reason": finish}]})


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
DONE = b"data: [DONE]\n\n"


def stream(*pieces: bytes, stall: bool = False, abort: bool = False) -> Deed:
    """A stream of pieces, which ends, stalls until the client leaves, or breaks off."""

    async def deed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(transfer_encoding="chunked"))
        for piece in pieces:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if stall:
            await reader.read(1)  # returns when the client has gone
            raise ConnectionError
        if abort:
            writer.transport.abort()
            raise ConnectionAbortedError
        writer.write(b"0\r\n\r\n")

    return deed


def answer(*texts: str) -> Deed:
    """A well-behaved stream."""
    return stream(*(chunk(text) for text in texts), chunk(finish="stop"), USAGE, DONE)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the request and say nothing until the client leaves."""
    await reader.read(1)
    raise ConnectionError


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the request and close the connection."""
    writer.transport.abort()
    raise ConnectionAbortedError


_open_fleets: list[Fleet] = []


def play(scenario: Coroutine[Any, Any, None], *, skips_idle: bool = True) -> None:
    """Run a scenario and close the fleets it opened.

    skips_idle  time limits pass at once; wrong with a database, whose threads are at work while the loop is idle
    """

    async def run() -> None:
        try:
            await scenario
        finally:
            while _open_fleets:
                await _open_fleets.pop().close()

    run_patiently(run(), skips_idle=skips_idle)


def a_request(model: str = "m", *, wants_stream: bool = True, text: str = "hi", **given: Any) -> Request:
    return Request(
        request_id=RequestId("r1"),
        model=model,
        prompt=(),
        sampling=SamplingParams(),
        stop=StopRules(max_tokens=16),
        n=given.get("n") or 1,
        source=Conversation(messages=(Message("user", (TextPart(text),)),)),
        given=Given(wants_stream=wants_stream, **given),
    )


QUICK = FailoverSettings(retry_s=5.0, backoff_s=0.01, retry_ratio=1.0)


def fleet_of(
    *urls: str,
    policy: FailoverSettings = QUICK,
    read_secret: Callable[[str], str] = lambda place: place,
    clock: Clock | None = None,
    weights: tuple[float, ...] = (),
    price_of: PriceOf | None = None,
    **settings: Any,
) -> Fleet:
    upstreams = {
        f"u{i}": UpstreamSettings(
            url=url, models={"m": "their-m"}, **{"weight": weights[i] if weights else 1.0, **settings}
        )
        for i, url in enumerate(urls)
    }
    fleet = Fleet(upstreams, policy, clock or LoopClock(), read_secret, random=Random(7), price_of=price_of)
    _open_fleets.append(fleet)
    return fleet


async def deltas_of(fleet: Fleet, request: Request) -> list[Delta]:
    return [delta async for delta in fleet.pool("m").generate(request)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)
