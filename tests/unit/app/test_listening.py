"""The listening socket: taken ports and open doors are refused before anything is loaded."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from headrace.app.listening import bind, check_exposure, is_loopback, url_of
from headrace.core.errors import ConfigError, PortInUse
from headrace.core.settings import ServerSettings


def test_a_taken_port_names_port_and_remedy() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"127\.0\.0\.1:{port} .*--port"):
            bind(ServerSettings(port=port))


def test_port_0_takes_a_free_one() -> None:
    with closing(bind(ServerSettings(port=0))) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="no host"):
        bind(ServerSettings(host="no host", port=0))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(ServerSettings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_hosts_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="api_key"):
        check_exposure(ServerSettings(host=host))
    check_exposure(ServerSettings(host=host, api_key="k"))


def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(ConfigError, match="empty"):
        check_exposure(ServerSettings(api_key=""))


def test_with_a_database_its_keys_decide() -> None:
    open_to_all = ServerSettings(host="0.0.0.0")
    check_exposure(open_to_all, has_database=True, has_keys=True)
    check_exposure(ServerSettings(), has_database=True)
    with pytest.raises(ConfigError, match="no keys"):
        check_exposure(open_to_all, has_database=True)
    with pytest.raises(ConfigError, match="both set"):
        check_exposure(ServerSettings(api_key="k"), has_database=True, has_keys=True)
