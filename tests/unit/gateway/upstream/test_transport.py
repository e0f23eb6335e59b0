"""HTTP to servers on real sockets that send what they should not, or in other pieces, or too late."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from headrace import __version__
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.transport import Limits, Reply, Transport
from tests.patient_loop import run_patiently

Deed = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
LIMITS = Limits(connect_s=60.0, first_byte_s=60.0, idle_s=60.0, total_s=60.0, max_reply_bytes=1 << 20)


def on_each_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on the loop of the standard library and on the server's own."""
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(scenario())


def limits(**bounds: Any) -> Limits:
    return Limits(**{name: getattr(LIMITS, name) for name in LIMITS.__struct_fields__} | bounds)


class Server:
    """Answers its n-th request with the n-th deed, the last one for ever."""

    def __init__(self, *deeds: Deed) -> None:
        self.deeds = list(deeds)
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.left = asyncio.Event()  # a client has closed its connection

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self.deeds[min(len(self.requests), len(self.deeds)) - 1](reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(*deeds: Deed, trust: ssl.SSLContext | None = None) -> Any:
    """Yield a server, its URL and a transport."""
    server, transport = Server(*deeds), Transport()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=trust)
    port = listening.sockets[0].getsockname()[1]
    scheme = "http" if trust is None else "https"
    try:
        yield server, f"{scheme}://127.0.0.1:{port}/v1/x", transport
    finally:
        await transport.close()
        listening.close()
        await listening.wait_closed()


async def ask(transport: Transport, url: str, bounds: Limits = LIMITS, **headers: str) -> Reply:
    return await transport.post("u", url, headers, b'{"a":1}', bounds, bounds.first_byte_s)


async def body_of(transport: Transport, url: str, bounds: Limits = LIMITS) -> bytes:
    reply = await ask(transport, url, bounds)
    try:
        return await reply.body()
    finally:
        reply.close()


def says(*pieces: bytes, hangs_up: bool = False) -> Deed:
    async def deed(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if hangs_up:
            writer.close()
            await writer.wait_closed()
            raise ConnectionError

    return deed


def test_a_request_says_what_it_should_and_nothing_else() -> None:
    async def run() -> None:
        async with serving(says(WHOLE)) as (server, url, transport):
            kind = {"content-type": "application/json"}
            reply = await ask(transport, url, **kind, authorization="Bearer k")
            assert (reply.status, reply.headers["content-type"], reply.is_event_stream) == (
                200,
                "application/json",
                False,
            )
            netloc = url.split("/")[2].encode()
            assert server.requests == [
                b"POST /v1/x HTTP/1.1\r\nHost: " + netloc + b"\r\naccept-encoding: identity\r\naccept: */*\r\n"
                b"user-agent: headrace/" + __version__.encode() + b"\r\n"
                b"content-type: application/json\r\nauthorization: Bearer k\r\n"
                b'Content-Length: 7\r\n\r\n{"a":1}'
            ]
            reply.close()

    on_each_loop(run)


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1;odd=x\r\n}\r\n0\r\ntrailer: t\r\n\r\n"
READABLE = [
    pytest.param(says(*(WHOLE[i : i + 1] for i in range(len(WHOLE)))), 2, id="byte by byte"),
    pytest.param(says(CHUNKED), 2, id="chunked, with an extension and a trailer"),
    pytest.param(says(*(CHUNKED[i : i + 1] for i in range(len(CHUNKED)))), 2, id="chunked byte by byte"),
    pytest.param(says(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE), 2, id="early hints before it"),
    pytest.param(says(b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE), 2, id="100 before it"),
    pytest.param(says(b"HTTP/1.1 200 OK\r\n\r\n{}", hangs_up=True), 0, id="ends with the connection"),
    pytest.param(says(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", hangs_up=True), 0, id="HTTP/1.0"),
    pytest.param(says(WHOLE.replace(b"content-l", b"connection: close\r\ncontent-l")), 0, id="connection: close"),
]


@pytest.mark.parametrize(("deed", "num_reused"), READABLE)
def test_a_reply_is_read_however_it_is_framed(deed: Deed, num_reused: int) -> None:
    async def run() -> None:
        async with serving(deed) as (server, url, transport):
            assert [await body_of(transport, url) for _ in range(3)] == [b"{}"] * 3
            assert server.num_connections == 3 - num_reused

    on_each_loop(run)


CUT = [
    pytest.param(says(hangs_up=True), "before its reply", id="nothing"),
    pytest.param(says(WHOLE[:20], hangs_up=True), "before its reply", id="in the head"),
    pytest.param(says(WHOLE[:-1], hangs_up=True), "in its reply", id="in the body"),
    pytest.param(says(CHUNKED[:60], hangs_up=True), "in its reply", id="in a chunk"),
    pytest.param(says(b"SSH-2.0-OpenSSH\r\n"), "no HTTP", id="another protocol"),
    pytest.param(says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n"), "no HTTP", id="2 lengths"),
    pytest.param(says(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 30_000), "no HTTP", id="an endless head"),
    pytest.param(
        says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n"), "broke off|no HTTP", id="no chunk"
    ),
]


@pytest.mark.parametrize(("deed", "said"), CUT)
def test_a_reply_that_is_none_is_a_passing_fault(deed: Deed, said: str) -> None:
    async def run() -> None:
        async with serving(deed, says(WHOLE)) as (_, url, transport):
            with pytest.raises(Failure, match=said) as caught:
                await body_of(transport, url)
            assert caught.value.kind is Kind.TRANSIENT
            assert await body_of(transport, url) == b"{}"  # nothing of it is left in the next reply

    on_each_loop(run)


def test_what_nobody_asked_for_is_never_taken_for_the_next_reply() -> None:
    async def run() -> None:
        two = says(WHOLE + WHOLE.replace(b"{}", b"[]"))
        async with serving(two, says(WHOLE)) as (server, url, transport):
            assert await body_of(transport, url) == b"{}"
            assert await body_of(transport, url) == b"{}"
            assert server.num_connections == 2

    on_each_loop(run)


def test_bytes_on_an_idle_connection_are_never_the_next_reply() -> None:
    async def run() -> None:
        more, sent = asyncio.Event(), asyncio.Event()

        async def late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(WHOLE)
            await more.wait()
            writer.write(WHOLE.replace(b"{}", b"[]"))
            await writer.drain()
            sent.set()

        async with serving(late, says(WHOLE)) as (_, url, transport):
            assert await body_of(transport, url) == b"{}"
            more.set()
            await sent.wait()
            for _number in range(20):
                await asyncio.sleep(0.001)  # the bytes are on their way: nothing here is told of them
            assert await body_of(transport, url) == b"{}"

    on_each_loop(run)


def test_a_server_that_sends_faster_than_it_is_read_has_to_wait() -> None:
    async def run() -> None:
        size = 64 << 20
        sent = 0

        async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for _number in range(size >> 20):
                writer.write(b"x" * (1 << 20))
                await writer.drain()
                sent += 1 << 20

        async with serving(flood) as (_, url, transport):
            reply = await ask(transport, url, limits(max_reply_bytes=size))
            for _number in range(200):
                await asyncio.sleep(0)
            assert sent < size
            assert len(await reply.body()) == size
            reply.close()

    on_each_loop(run)


def test_each_wait_has_its_own_bound_whatever_the_one_before_had() -> None:
    async def run() -> None:
        silent = says(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{")
        for deed, bounds, said in (
            (silent, limits(idle_s=0.05), "fell silent for 0.05 s"),
            (silent, limits(total_s=0.05), "not done after 0.05 s"),
            (says(), limits(first_byte_s=0.05), "sent nothing for 0.05 s"),
            (says(), limits(total_s=0.05), "not done after 0.05 s"),
        ):
            async with serving(says(WHOLE), deed) as (_, url, transport):
                assert await body_of(transport, url, limits(first_byte_s=60.0)) == b"{}"
                with pytest.raises(Failure, match=said):
                    await body_of(transport, url, bounds)

    on_each_loop(run)


def test_a_slow_stream_lives_as_long_as_it_says_something_in_time() -> None:
    async def run() -> None:
        async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
            for _number in range(8):
                await asyncio.sleep(0.03)
                writer.write(b"x")

        async with serving(drip) as (_, url, transport):
            assert await body_of(transport, url, limits(idle_s=0.15)) == b"x" * 8

    run_patiently(run())  # another loop's time goes on while the machine stands still


def test_silence_counts_from_the_last_word() -> None:
    async def run() -> None:
        async def fade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
            for _number in range(3):
                await asyncio.sleep(0.03)
                writer.write(b"x")
            await reader.read(1)
            raise ConnectionError

        async with serving(fade) as (server, url, transport):
            with pytest.raises(Failure, match=r"fell silent for 0\.1 s"):
                await asyncio.wait_for(body_of(transport, url, limits(idle_s=0.1)), 10)
            await asyncio.wait_for(server.left.wait(), 5)

    on_each_loop(run)


def test_a_reply_of_too_many_bytes_is_not_kept() -> None:
    async def run() -> None:
        async with serving(says(WHOLE)) as (_, url, transport):
            with pytest.raises(Failure, match="more than 1 bytes"):
                await body_of(transport, url, limits(max_reply_bytes=1))

    on_each_loop(run)


def test_a_header_of_two_lines_is_not_sent() -> None:
    async def run() -> None:
        async with serving(says(WHOLE)) as (server, url, transport):
            with pytest.raises(Failure, match="line break") as caught:
                await ask(transport, url, authorization="Bearer k\r\nx: y")
            assert "Bearer" not in caught.value.error.message
            assert server.requests == []

    on_each_loop(run)


def test_one_that_leaves_while_it_waits_closes_its_connection() -> None:
    async def run() -> None:
        async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read(1)
            raise ConnectionError

        async with serving(silence) as (server, url, transport):
            waiting = asyncio.ensure_future(ask(transport, url))
            while not server.requests:
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait_for(server.left.wait(), 60)
            await asyncio.gather(waiting, return_exceptions=True)

    on_each_loop(run)


def a_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what a server of 127.0.0.1 needs, and the file that clients have to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, secret = folder / "trusted.pem", folder / "secret.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, secret)
    return context, trusted


@pytest.mark.parametrize("is_trusted", [True, False])
def test_an_https_server_is_asked_only_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    context, trusted = a_certificate(tmp_path)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))

    async def run() -> None:
        async with serving(says(WHOLE), trust=context) as (server, url, transport):
            if is_trusted:
                assert [await body_of(transport, url) for _ in range(2)] == [b"{}"] * 2
                assert server.num_connections == 1
            else:
                with pytest.raises(Failure, match=r"cannot be reached .*CERTIFICATE_VERIFY_FAILED"):
                    await body_of(transport, url)
                assert server.requests == []

    on_each_loop(run)
