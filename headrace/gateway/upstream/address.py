"""Where an upstream's API lives and what every call to it carries.

Owns nothing. Invariant: the key is in the headers of a call and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from headrace.core.errors import ConfigError
from headrace.core.upstream_settings import UpstreamSettings
from headrace.gateway.upstream.profiles import Profile
from headrace.gateway.upstream.transport import Limits

ANTHROPIC_VERSION = "2023-06-01"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_THE_CONNECTION = ("accept-encoding", "connection", "content-length", "expect", "te", "transfer-encoding", "upgrade")


def check_url(name: str, url: str) -> None:
    """Raise ConfigError unless `url` is one that can be called."""
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_fine = False
    if not is_fine:
        raise ConfigError(f"upstreams.{name}.url is '{url}'; write one like http://HOST:PORT/v1", param="url")
    if parts.username or parts.password:
        raise ConfigError(f"upstreams.{name}.url holds a password; set upstreams.{name}.api_key instead", param="url")


def check_headers(name: str, headers: Mapping[str, str]) -> None:
    """Raise ConfigError for request headers that are none, or that belong to the connection."""
    for header, value in headers.items():
        if not _HEADER_NAME.fullmatch(header) or any(character in value for character in "\r\n\0"):
            raise ConfigError(
                f"upstreams.{name}.headers holds {header!r}, which is no header; write a name and one line of text",
                param="headers",
            )
        if header.lower() in _OF_THE_CONNECTION:
            raise ConfigError(
                f"upstreams.{name}.headers holds '{header}', which each request sets itself; leave it out",
                param="headers",
            )


def api_base(url: str) -> str:
    """Return the URL that API paths follow: `url`, with /v1 where it names a server only."""
    trimmed = url.rstrip("/")
    return trimmed if urlsplit(trimmed).path else trimmed + "/v1"


def server_root(url: str) -> str:
    """Return scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def probe_url(settings: UpstreamSettings, profile: Profile) -> str:
    """Return the URL that tells whether the server is well."""
    if profile.probe.startswith("/"):
        return server_root(settings.url) + profile.probe
    return f"{api_base(settings.url)}/{profile.probe}"


def limits_of(settings: UpstreamSettings) -> Limits:
    """Collect the bounds of a call."""
    return Limits(
        connect_s=settings.connect_s,
        first_byte_s=settings.first_byte_s,
        idle_s=settings.idle_s,
        total_s=settings.total_s,
        max_reply_bytes=settings.max_reply_bytes,
    )


def request_headers(
    settings: UpstreamSettings, profile: Profile, secret: str | None, request_id: str
) -> dict[str, str]:
    """Make the headers of a call: type, key, this request's id for the other side's log, and what the settings add."""
    headers = {"content-type": "application/json", "x-correlation-id": request_id}
    if profile.wire == "anthropic":
        headers["anthropic-version"] = ANTHROPIC_VERSION
    if secret is not None:
        bearer = profile.key_header == "authorization"
        headers[profile.key_header] = f"Bearer {secret}" if bearer else secret
    for name, value in settings.headers.items():
        headers[name.lower()] = value
    return headers
