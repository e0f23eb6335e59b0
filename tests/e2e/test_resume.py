"""Lost and slow connections over real sockets: resumed streams, repeated calls, ends by id, backpressure."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import until

BODY = {"prompt": "go on", "max_tokens": 300, "stream": True, "ignore_eos": True, "temperature": 0}


def frames_of(response: httpx.Response, limit: int | None = None) -> list[tuple[str, str]]:
    """(id, data) of the first events of an open stream."""
    found: list[tuple[str, str]] = []
    event_id = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name == "data":
            found.append((event_id, value))
            if len(found) == limit:
                break
    return found


def text_of(frames: list[tuple[str, str]]) -> str:
    return "".join(json.loads(data)["choices"][0]["text"] for _, data in frames if data != "[DONE]")


def test_a_resumed_answer_is_the_uninterrupted_one(tiny: Any) -> None:
    with httpx.Client(base_url=tiny.url, timeout=60, trust_env=False) as client:
        with client.stream("POST", "/v1/completions", json=BODY) as response:
            whole = frames_of(response)
        headers = {"X-Resume-Grace": "30", "x-request-id": "lost-one"}
        with client.stream("POST", "/v1/completions", json=BODY, headers=headers) as response:
            before = frames_of(response, 3)
    with httpx.Client(base_url=tiny.url, timeout=60, trust_env=False) as client:
        headers = {"Last-Event-ID": before[-1][0]}
        with client.stream("GET", "/v1/requests/lost-one/events", headers=headers) as response:
            after = frames_of(response)
        assert [int(number) for number, _ in before + after] == list(range(1, len(before + after) + 1))
        assert after[-1][1] == whole[-1][1] == "[DONE]"
        assert text_of(before + after) == text_of(whole)
        headers = {"Last-Event-ID": after[-1][0]}
        assert client.get("/v1/requests/lost-one/events", headers=headers).status_code == 204


def test_a_repeated_call_with_one_key_is_computed_once(tiny: Any) -> None:
    before = tiny.metric("vllm:generation_tokens_total")
    body = {"prompt": "once", "max_tokens": 9, "ignore_eos": True}
    with httpx.Client(base_url=tiny.url, timeout=60, trust_env=False) as client:
        replies = [
            client.post("/v1/completions", json=body, headers={"Idempotency-Key": "order-66"}).content for _ in range(3)
        ]
    assert len(set(replies)) == 1
    assert tiny.metric("vllm:generation_tokens_total") - before == 9


def test_an_end_by_id_ends_the_answer_as_abort(tiny: Any) -> None:
    body = BODY | {"max_tokens": 480}
    with (
        tiny.slowed(),
        httpx.Client(base_url=tiny.url, timeout=60, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=body, headers={"x-request-id": "stop-me"}) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        told = httpx.delete(f"{tiny.url}/v1/requests/stop-me", timeout=60, trust_env=False).json()
        assert told == {"object": "request", "id": "stop-me", "status": "cancelled"}
        data = [line for line in lines if line]
    assert data[-1] == "data: [DONE]"
    assert '"finish_reason":"abort"' in data[-2]
    assert tiny.metric("vllm:num_requests_running") == 0
    assert tiny.metric("vllm:kv_cache_usage_perc") == 0


def test_a_reader_that_takes_nothing_is_paused_and_the_others_are_not(tiny_path: Path, start_server: Any) -> None:
    args = ["--backend", "reference", "--kv-memory-mib", "8", "--max-step-tokens", "64", "--max-unread-tokens", "4"]
    body = BODY | {"max_tokens": 450, "logprobs": 20, "n": 4}
    request = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(request)}\r\n\r\n"
    with start_server(f"file:{tiny_path}", *args) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        slow.sendall(head.encode() + request)
        until(lambda: server.metric("headrace_paused_sequences") == 4)
        reply = server.post("/v1/completions", prompt="quick", max_tokens=50, ignore_eos=True)
        assert reply.json()["usage"]["completion_tokens"] == 50
        # The kernel's own buffers may still take a few events: the answer may go on for a while, not to its end.
        assert server.metric("vllm:generation_tokens_total") < 2 * 450
        assert server.get("/health/ready").json() == {"state": "ready"}
        slow.settimeout(60)
        told = b""
        while piece := slow.recv(1 << 16):
            told += piece
        assert b"data: [DONE]" in told
        assert server.metric("vllm:generation_tokens_total") == 4 * 450 + 50
        assert server.stop() == 0
