"""A whole answer as a raw ASGI reply: status, headers and one body of JSON, sent one right after the other.

Owns nothing. `app.connections` makes one write of the two messages. For generated answers, of which there are many, it
takes the place of a general response, which looks at each header for what such an answer never has.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

_JSON = (b"content-type", b"application/json")


class JsonReply:
    """ASGI application that sends `body`, a JSON document. `headers` are read when it is sent."""

    __slots__ = ("_body", "_headers")

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        self._body = body
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._body
        headers = [(b"content-length", b"%d" % len(body)), _JSON, *encoded(self._headers)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Names(dict[str, bytes]):
    """Names of headers as they are sent; a few dozen are ours, what an upstream may add is not kept."""

    def __missing__(self, name: str) -> bytes:
        spelled = name.encode("latin-1")
        if len(self) < _MOST_NAMES:
            self[name] = spelled
        return spelled


_MOST_NAMES = 256
_names = _Names()


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as they are sent: names are lower-case, both are Latin-1."""
    return [(_names[name], value.encode("latin-1")) for name, value in headers.items()]
