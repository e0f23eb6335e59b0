"""The metric vocabulary against a hand-made event log, and the client against a scripted server."""

from __future__ import annotations

import asyncio

import pytest

from headrace.bench.client import stream_request
from headrace.bench.load import LoadPlan, make_prompt, run_load
from headrace.bench.metrics import RequestLog, distribution, summarize


def log(sent: float, content: list[float], done: float, error: str | None = None) -> RequestLog:
    return RequestLog(
        scheduled_s=sent, sent_s=sent, content_s=content, done_s=done, output_tokens=len(content), error=error
    )


def test_ttft_itl_tpot_and_throughput_of_a_known_log() -> None:
    report = summarize([log(0.0, [0.1, 0.2, 0.4], 0.5), log(1.0, [1.3, 1.4, 1.5], 2.0)])
    assert report.ttft_ms.mean == pytest.approx(200.0)
    assert report.itl_ms.count == 4
    assert report.tpot_ms.mean == pytest.approx((150.0 + 100.0) / 2)
    assert report.output_tokens_per_s == pytest.approx(6 / 2.0)


def test_failed_requests_count_in_time_but_not_in_latency() -> None:
    report = summarize([log(0.0, [0.1], 0.2), log(0.0, [], 4.0, error="HTTP 500")])
    assert (report.completed, report.failed) == (1, 1)
    assert report.duration_s == 4.0
    assert report.errors == ("HTTP 500",)


def test_percentiles_are_linear() -> None:
    assert distribution([0.001, 0.002, 0.003, 0.004]).p50 == pytest.approx(2.5)


def test_nothing_measured_is_said_as_count_zero() -> None:
    assert distribution([]).count == 0


def test_prompts_differ_between_requests_and_repeat_between_runs() -> None:
    assert make_prompt(20, 1) == make_prompt(20, 1)
    assert make_prompt(20, 1) != make_prompt(20, 2)


async def _serve(parts: list[bytes], status: bytes = b"200 OK") -> tuple[asyncio.Server, str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"


def test_events_split_across_http_chunks_are_counted_once() -> None:
    parts = [
        b'data: {"choices":[{"text":"Hel',
        b'lo"}]}\n\ndata: {"choices":[{"text":""}]}\n\n',
        b'data: {"choices":[{"text":"!"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}\n\n',
        b"data: [DONE]\n\n",
    ]

    async def act() -> RequestLog:
        server, url = await _serve(parts)
        async with server:
            return await stream_request(url, {}, timeout_s=5)

    result = asyncio.run(act())
    assert result.error is None
    assert len(result.content_s) == 2
    assert (result.prompt_tokens, result.output_tokens) == (3, 7)


def test_http_errors_and_refused_connections_are_told() -> None:
    async def act() -> tuple[RequestLog, RequestLog]:
        server, url = await _serve([b'{"error": "busy"}'], b"429 Too Many Requests")
        async with server:
            refused = await stream_request(url, {}, timeout_s=5)
        return refused, await stream_request(url, {}, timeout_s=5)

    busy, gone = asyncio.run(act())
    assert busy.error is not None
    assert "429" in busy.error
    assert gone.error is not None
    assert "connect" in gone.error


def test_closed_loop_runs_every_request_once() -> None:
    async def act() -> int:
        server, url = await _serve([b'data: {"choices":[{"text":"a"}]}\n\n', b"data: [DONE]\n\n"])
        async with server:
            plan = LoadPlan(url=url, model="m", num_clients=3, num_requests=8, prompt_words=4, output_tokens=1)
            return (await run_load(plan)).completed

    assert asyncio.run(act()) == 8
