"""The listening socket: taken before anything is loaded, so that a taken port is told at once.

Owns the rule that only loopback is served without a key.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from headrace.core.errors import ConfigError, PortInUse
from headrace.core.settings import ServerSettings

_SEND_BUFFER_BYTES = 128 << 10
_LONGEST_MS = (1 << 31) - 1


def check_exposure(server: ServerSettings, *, has_database: bool = False, has_keys: bool = False) -> None:
    """Raise ConfigError if the server would be open to others without a key.

    has_database  keys are looked up in a database, which then is the only authority
    has_keys      there are keys in it
    """
    if server.api_key == "":
        raise ConfigError("server.api_key is empty; set a key, or leave it out to serve loopback only")
    if server.api_key is not None and has_database:
        raise ConfigError(
            "server.api_key and a database are both set, and only one can say who may call; "
            "make a key with `headrace keys create` and leave server.api_key out"
        )
    if is_loopback(server.host):
        return
    if has_database and not has_keys:
        raise ConfigError(
            f"host '{server.host}' can be reached from other machines and the database has no keys; "
            "make one with `headrace keys create`, or use --host 127.0.0.1"
        )
    if server.api_key is None and not has_database:
        raise ConfigError(
            f"host '{server.host}' can be reached from other machines and no key is set; "
            "set server.api_key (HEADRACE_SERVER__API_KEY), make keys in a database (HEADRACE_DATABASE), "
            "or use --host 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(server: ServerSettings, *, slow_reader_s: float = 60.0) -> socket.socket:
    """Take the port; nothing is accepted yet. Raises PortInUse or ConfigError.

    slow_reader_s  seconds after which the kernel closes a connection whose peer takes nothing, where it can
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0]
    except OSError as err:
        raise ConfigError(f"host '{server.host}' cannot be resolved: {err.strerror}; use --host 127.0.0.1") from err
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit both: a bound on what is on its way to a slow reader, and an end to waiting.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(slow_reader_s * 1e3), _LONGEST_MS))
        sock.bind(address)
    except OSError as err:
        sock.close()
        where = f"{server.host}:{server.port}"
        if err.errno == errno.EADDRINUSE:
            raise PortInUse(f"{where} is in use by another process; choose another with --port, or --port 0") from err
        raise ConfigError(f"cannot listen on {where}: {err.strerror}; choose another --host or --port") from err
    sock.setblocking(False)
    return sock


def url_of(sock: socket.socket, *, has_tls: bool = False) -> str:
    """Return the URL under which this machine reaches the server."""
    scheme = "https" if has_tls else "http"
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
