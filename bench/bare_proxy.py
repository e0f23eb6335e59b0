"""The least that a proxy of our libraries does: Starlette on uvicorn asks one upstream through aiohttp.

    python bench/bare_proxy.py URL

No keys, no checks, no limits on waits or sizes, no metrics, no ledger: what `headrace serve` adds to it is ours. Prints
its port; ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import aiohttp
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def main(url: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def forward(request: Request) -> Response:
            headers = {"content-type": "application/json"}
            async with session.post(url, data=await request.body(), headers=headers) as reply:
                return Response(await reply.read(), reply.status, media_type="application/json")

        app = Starlette(routes=[Route("/v1/completions", forward, methods=["POST"])])
        config = uvicorn.Config(app, http="httptools", loop="none", lifespan="off", access_log=False, log_level="error")
        server = uvicorn.Server(config)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            print(sock.getsockname()[1], flush=True)
            serving = asyncio.ensure_future(server.serve(sockets=[sock]))
            await asyncio.to_thread(sys.stdin.read)
            server.should_exit = True
            await serving


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
