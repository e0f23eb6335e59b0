"""The only place where errors become HTTP.

Owns: the mapping from the error tree to status, headers and the error shape of the wire that was called. Used by the
exception handlers of `app`, by `access` (which refuses before routing) and by `sse` (errors inside a stream).
Invariant: nothing of an unexpected exception but its request id reaches the client; the traceback goes to the log.
"""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from headrace.api.anthropic_replies import AnthropicError, AnthropicErrorBody
from headrace.api.anthropic_replies import error_type as anthropic_type
from headrace.api.openai_replies import ErrorBody, ErrorReply
from headrace.core.errors import HeadraceError, Unauthorized

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_body(err: BaseException, request_id: str, path: str) -> bytes:
    """Encode `err` in the shape of the wire at `path`. What is not of the tree is told by id only."""
    told = err if isinstance(err, HeadraceError) else None
    message = f"internal error; the log has it under request {request_id}" if told is None else told.message
    status = 500 if told is None else told.http_status
    if is_anthropic(path):
        reply = AnthropicError(AnthropicErrorBody(anthropic_type(status), message), request_id)
        return msgspec.json.encode(reply)
    if told is None:
        return msgspec.json.encode(ErrorReply(ErrorBody(message, "server_error", None, "internal")))
    return msgspec.json.encode(ErrorReply(ErrorBody(message, _error_type(status), told.param, told.code)))


def error_event(err: BaseException, request_id: str, path: str) -> bytes:
    """Frame `err` as an event of a stream of the wire at `path`."""
    name = b"event: error\n" if is_anthropic(path) else b""
    return name + b"data: " + error_body(err, request_id, path) + b"\n\n"


def is_anthropic(path: str) -> bool:
    """Say whether `path` belongs to the Anthropic wire."""
    return path.startswith("/v1/messages")


def error_response(err: BaseException, request_id: str, path: str) -> Response:
    """Make the whole HTTP reply for `err`."""
    status = err.http_status if isinstance(err, HeadraceError) else 500
    headers: dict[str, str] = dict(err.headers) if isinstance(err, HeadraceError) else {}
    if isinstance(err, HeadraceError) and err.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(err.retry_after_s)))
    if isinstance(err, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(err, request_id, path), status, headers, media_type="application/json")


def plain_error(status: int, message: str, code: str) -> Response:
    """Make a reply for what the router refuses: no such path, wrong method."""
    body = ErrorBody(message, _error_type(status), None, code)
    return Response(msgspec.json.encode(ErrorReply(body)), status, media_type="application/json")


def _error_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")
