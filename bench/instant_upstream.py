"""A server of OpenAI's wire that computes nothing, for measurements of what stands before it.

    python bench/instant_upstream.py [--wait 0.02] [--gap 0.25] [--tokens 5]

Prints its port and serves until its input closes. Every POST gets the same answer: whole, `wait` seconds after the
request, or, where the request asks for a stream, one token every `gap` seconds. An answer costs it some 15 µs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests come one after the other."""

    def __init__(self, wait_s: float, gap_s: float, num_tokens: int) -> None:
        self._wait_s = wait_s
        self._gap_s = gap_s
        self._num_tokens = num_tokens
        usage = {"prompt_tokens": 5, "completion_tokens": num_tokens, "total_tokens": 5 + num_tokens}
        choice = {"index": 0, "text": "t" * num_tokens, "finish_reason": "stop"}
        head = {"id": "i", "object": "text_completion", "created": 0, "model": "echo"}
        whole = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
        self._whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(whole)
        self._whole += whole
        self._event = self._chunk({**head, "choices": [{"index": 0, "text": "t", "finish_reason": None}]})
        last = {"index": 0, "text": "", "finish_reason": "stop"}
        self._end = self._chunk({**head, "choices": [last], "usage": usage}) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        self._read = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, ended, body = self._read.partition(b"\r\n\r\n")
        if not ended:
            return
        length = next((part for part in head.lower().split(b"\r\n") if part.startswith(b"content-length:")), b":0")
        if len(body) < int(length.split(b":")[1]):
            return
        self._read = b""
        loop = asyncio.get_running_loop()
        if b'"stream":true' in body or b'"stream": true' in body:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            loop.call_later(self._gap_s, self._stream, self._num_tokens)
        elif self._wait_s:
            loop.call_later(self._wait_s, self._transport.write, self._whole)
        else:
            self._transport.write(self._whole)

    def _stream(self, num_left: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._event if num_left else self._end)
        if num_left:
            asyncio.get_running_loop().call_later(self._gap_s, self._stream, num_left - 1)

    @staticmethod
    def _chunk(document: dict[str, object]) -> bytes:
        event = b"data: " + json.dumps(document).encode() + b"\n\n"
        return b"%x\r\n%s\r\n" % (len(event), event)


async def serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(args.wait, args.gap, args.tokens), "127.0.0.1", 0, backlog=2048
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds before a whole answer (default: 0)")
    parser.add_argument("--gap", type=float, default=0.25, help="seconds between tokens of a stream (default: 0.25)")
    parser.add_argument("--tokens", type=int, default=5, help="of an answer (default: 5)")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
