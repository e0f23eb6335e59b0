"""The HTTP server: uvicorn as this process needs it, with a limit on connections and with TLS.

Owns the choice of protocol and the refusal of connections beyond the limit, which get one clear answer and are closed.
Certificates are read before anything is loaded, so that a wrong one is told at once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headrace.app.http_protocol import Connection
from headrace.core.errors import ConfigError
from headrace.core.settings import ServerSettings

CLOSE_GRACE_S = 2  # for bytes of ended streams to reach their clients
_KEEP_ALIVE_S = 75  # longer than the pools of common clients, so that they close idle connections, not we
_KNOWN = (  # what `http_protocol` builds on, the same from uvicorn 0.30 to 0.54
    "scope", "transport", "flow", "logger", "access_logger", "access_log", "default_headers", "message_event",
    "expect_100_continue", "keep_alive", "on_response",
)  # fmt: skip
_log = logging.getLogger(__name__)
_REFUSAL = (
    b'{"error":{"message":"%d connections are open, the limit is %d (server.max_connections); try again later",'
    b'"type":"server_error","param":null,"code":"too_many_connections"}}'
)


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process's life belongs to `app.serving`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: object, server: ServerSettings) -> HttpServer:
    """Make the server of `app`; it takes its socket when it serves. Raises what `check_tls` raises."""
    check_tls(server)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=_protocol() if server.max_connections is None else _limited(_protocol(), server.max_connections),
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who calls is told by the key, not by an address
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(server.drain_s) + CLOSE_GRACE_S,
        ssl_certfile=server.tls_cert,
        ssl_keyfile=server.tls_key,
    )
    return HttpServer(config)


def check_tls(server: ServerSettings) -> None:
    """Raise ConfigError unless certificate and key are both absent, or fit each other."""
    cert, key = server.tls_cert, server.tls_key
    if cert is None and key is None:
        return
    if cert is None or key is None:
        given, missing = ("tls_key", "tls_cert") if cert is None else ("tls_cert", "tls_key")
        raise ConfigError(f"server.{given} is set and server.{missing} is not; TLS needs both")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except ssl.SSLError as err:
        reason = err.reason or "they cannot be read"
        raise ConfigError(f"server.tls_cert {cert} and server.tls_key {key} are not a pair in PEM: {reason}") from err
    except OSError as err:
        raise ConfigError(f"server.tls_cert {cert} or server.tls_key {key} cannot be read: {err.strerror}") from err


def _protocol() -> type[HttpToolsProtocol]:
    """Return our protocol, or uvicorn's own, slower one, where this uvicorn's is not the one that ours builds on."""
    if tuple(inspect.signature(RequestResponseCycle.__init__).parameters)[1:] == _KNOWN:
        return Connection
    _log.info("uvicorn %s is not known here: requests take its own protocol, which is slower", uvicorn.__version__)
    return HttpToolsProtocol


def _limited(protocol: type[HttpToolsProtocol], limit: int) -> type[HttpToolsProtocol]:
    """Make the protocol that answers requests on connections beyond the limit with 503."""

    class Limited(protocol):  # type: ignore[misc, valid-type]
        is_refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.is_refused = len(self.connections) > limit

        def on_headers_complete(self) -> None:
            if self.is_refused:
                self.app = _refuse(len(self.connections), limit)
            super().on_headers_complete()

    return Limited


def _refuse(num_open: int, limit: int) -> object:
    """Make the application that says why a connection is not served, and closes it."""
    body = _REFUSAL % (num_open, limit)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
        (b"connection", b"close"),
    ]

    async def app(scope: object, receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
