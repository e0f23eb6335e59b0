"""A real uvicorn on a real socket: the limit on connections, and TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.app import connections
from headrace.app.connections import HttpServer, check_tls, http_server
from headrace.app.http_protocol import Connection
from headrace.core.errors import ConfigError
from headrace.core.settings import ServerSettings

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[int]:
    server: HttpServer = http_server(hello, ServerSettings(**settings))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        task = asyncio.ensure_future(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.001)
        try:
            yield sock.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.mark.parametrize("is_known", [True, False])
def test_connections_beyond_the_limit_are_told_so_and_closed(monkeypatch: pytest.MonkeyPatch, is_known: bool) -> None:
    """A uvicorn that has become another one serves as well, with its own protocol."""
    if not is_known:
        monkeypatch.setattr(connections, "_KNOWN", ("scope", "something new"))

    async def main() -> None:
        async with serving(max_connections=2) as port:
            kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for reader, writer in kept:
                writer.write(REQUEST)
                assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in head
            error = json.loads(body)["error"]
            assert error["code"] == "too_many_connections"
            assert "the limit is 2" in error["message"]
            for each in (writer, kept[0][1]):
                each.close()
                await each.wait_closed()
            async with asyncio.timeout(60):
                while True:  # the server notices the free place in its own time
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(REQUEST)
                    is_served = (await reader.readline()).startswith(b"HTTP/1.1 200")
                    writer.close()
                    await writer.wait_closed()
                    if is_served:
                        break
            kept[1][1].close()
            await kept[1][1].wait_closed()

    asyncio.run(main())


def test_this_uvicorn_takes_the_fast_protocol() -> None:
    assert issubclass(http_server(hello, ServerSettings()).config.http, Connection)  # type: ignore[arg-type]


def test_https_is_spoken_with_a_certificate(pair: tuple[str, str]) -> None:
    async def main() -> None:
        cert, key = pair
        context = ssl.create_default_context(cafile=cert)
        async with serving(tls_cert=cert, tls_key=key) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(REQUEST)
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_tls_files_that_do_not_fit_are_refused_by_name(pair: tuple[str, str], tmp_path: Path) -> None:
    cert, key = pair
    junk = tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    for fields, said in [
        ({"tls_cert": cert}, "server.tls_key is not"),
        ({"tls_key": key}, "server.tls_cert is not"),
        ({"tls_cert": str(junk), "tls_key": key}, "not a pair"),
        ({"tls_cert": key, "tls_key": cert}, "not a pair"),
        ({"tls_cert": str(tmp_path / "none"), "tls_key": key}, "No such file"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check_tls(ServerSettings(**fields))
    check_tls(ServerSettings())
    check_tls(ServerSettings(tls_cert=cert, tls_key=key))
