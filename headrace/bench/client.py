"""A streaming HTTP client that costs little: one connection per request, chunks timed as their bytes arrive.

A load generator on the machine under test steals its cores, so this one parses HTTP in C (httptools) and looks into the
JSON of a chunk only until the first content and at the end. Loopback and plain HTTP only: it is a measuring tool.
Owns its sockets; every request ends with its log filled, error or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import httptools
import msgspec

from headrace.bench.metrics import RequestLog

_DATA = b"data: "
_DONE = b"[DONE]"
_decoder = msgspec.json.Decoder()


class _StreamProtocol(asyncio.Protocol):
    """Feeds one response into one log."""

    def __init__(self, log: RequestLog, finished: asyncio.Future[None]) -> None:
        self._log = log
        self._finished = finished
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._status_body = b""

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"broken HTTP: {error}")

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._status_body += body[:2000]
            return
        lines = (self._rest + body).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(_DATA):
                self._event(line[len(_DATA) :].strip())

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._end(None if status == 200 else f"HTTP {status}: {self._status_body[:200]!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("connection closed before the end of the stream")

    def _event(self, data: bytes) -> None:
        log = self._log
        if data == _DONE:
            return
        if log.first_chunk_s is None:
            log.first_chunk_s = self._now
        if b'"choices":[]' in data or b'"choices": []' in data or b'"usage":{' in data or b'"usage": {' in data:
            self._usage(data)
        if _has_content(data):
            log.content_s.append(self._now)

    def _usage(self, data: bytes) -> None:
        usage = _decoder.decode(data).get("usage")
        if usage:
            self._log.prompt_tokens = usage["prompt_tokens"]
            self._log.output_tokens = usage["completion_tokens"]

    def _end(self, error: str | None) -> None:
        if self._finished.done():
            return
        self._log.done_s = time.perf_counter()
        self._log.error = error
        if error is None and self._log.output_tokens == 0:
            self._log.output_tokens = len(self._log.content_s)
        self._finished.set_result(None)


def _has_content(data: bytes) -> bool:
    """Say whether a chunk carries text; empty strings, roles and bare finishes do not count."""
    for key in (b'"content":', b'"text":'):
        at = data.find(key)
        if at >= 0:
            value = data[at + len(key) : at + len(key) + 3].lstrip()
            return not value.startswith((b'""', b"nu"))
    return False


async def stream_request(
    url: str, body: Mapping[str, object], *, timeout_s: float, api_key: str | None = None
) -> RequestLog:
    """POST `body` to `url`, read the SSE answer to its end and return its log. Errors are told in the log."""
    parts = urlsplit(url)
    payload = msgspec.json.encode(body)
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\n{key}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    log = RequestLog(scheduled_s=time.perf_counter())
    finished: asyncio.Future[None] = loop.create_future()
    log.sent_s = log.scheduled_s
    try:
        transport, _ = await loop.create_connection(
            lambda: _StreamProtocol(log, finished), parts.hostname or "127.0.0.1", parts.port or 80
        )
    except OSError as error:
        log.error, log.done_s = f"cannot connect to {parts.netloc}: {error}", time.perf_counter()
        return log
    try:
        log.sent_s = time.perf_counter()
        transport.write(head.encode() + payload)
        await asyncio.wait_for(finished, timeout_s)
    except TimeoutError:
        log.error, log.done_s = f"no end of stream after {timeout_s:g} s", time.perf_counter()
    finally:
        transport.close()
    return log
