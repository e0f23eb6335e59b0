"""The only place where errors become HTTP.

Owns: the mapping from the error tree to status, headers and OpenAI's error shape. Called by the exception handlers of
`app`, by `access` (which refuses before routing) and by `sse` (errors inside a stream).
Invariant: nothing of an unexpected exception but its request id reaches the client; the traceback goes to the log.
"""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

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


def error_body(err: BaseException, request_id: str) -> bytes:
    """Encode `err` as OpenAI's error object. Others are internal errors, told by id only."""
    if isinstance(err, HeadraceError):
        body = ErrorBody(err.message, _error_type(err.http_status), err.param, err.code)
    else:
        body = ErrorBody(f"internal error; the log has it under request {request_id}", "server_error", None, "internal")
    return msgspec.json.encode(ErrorReply(body))


def error_response(err: BaseException, request_id: str) -> Response:
    """Make the whole HTTP reply for `err`."""
    status = err.http_status if isinstance(err, HeadraceError) else 500
    headers: dict[str, str] = {}
    if isinstance(err, HeadraceError) and err.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(err.retry_after_s)))
    if isinstance(err, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(err, request_id), status, headers, media_type="application/json")


def plain_error(status: int, message: str, code: str) -> Response:
    """Make a reply for what the router refuses: no such path, wrong method."""
    body = ErrorBody(message, _error_type(status), None, code)
    return Response(msgspec.json.encode(ErrorReply(body)), status, media_type="application/json")


def _error_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")
