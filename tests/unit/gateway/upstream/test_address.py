"""Request headers from the settings: what is none, or belongs to the connection, is refused at the start."""

from __future__ import annotations

import pytest

from headrace.core.errors import ConfigError
from headrace.core.upstream_settings import UpstreamSettings
from headrace.gateway.upstream.address import request_headers
from headrace.gateway.upstream.profiles import profiles
from tests.unit.gateway.upstream.scripted import fleet_of


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x y": "1"}, "'x y', which is no header"),
        ({"": "1"}, "which is no header"),
        ({"x": "1\r\ny: 2"}, "'x', which is no header"),
        ({"Content-Length": "5"}, "'Content-Length', which each request sets itself"),
        ({"transfer-encoding": "chunked"}, "which each request sets itself"),
    ],
)
def test_headers_that_would_break_a_request_are_refused_at_the_start(headers: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fleet_of("http://h/v1", headers=headers)


def test_headers_of_the_settings_come_before_our_own_whatever_their_case() -> None:
    settings = UpstreamSettings(url="http://h", models={"m": "m"}, headers={"Content-Type": "x", "X-Team": "a"})
    headers = request_headers(settings, profiles()["generic"], "k", "r1")
    assert headers == {"content-type": "x", "x-correlation-id": "r1", "authorization": "Bearer k", "x-team": "a"}
