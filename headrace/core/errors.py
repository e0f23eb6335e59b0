"""The one tree of errors a user can meet.

    HeadraceError
    ├── InvalidRequest             400  the caller can mend it
    │   ├── PromptTooLong
    │   ├── UnknownParameter
    │   ├── UnsupportedParameter
    │   ├── MalformedBody
    │   ├── BodyTooLarge           413
    │   └── TemplateFailed
    ├── Unauthorized               401
    ├── Forbidden                  403
    ├── TaskExhausted              403
    ├── BudgetExceeded             402
    ├── RateLimited                429  retryable
    ├── UnknownModel               404
    ├── NotFound                   404  an object of the administration
    ├── Conflict                   409  such an object exists already
    ├── UnknownRequest             404
    ├── RequestIdTaken             409
    ├── RequestCancelled           409
    ├── SwapRefused                409
    ├── StreamExpired              410
    ├── KeyReused                  422
    ├── Overloaded                 429  retryable
    │   └── DeadlineUnreachable
    ├── ModelLoading               503  retryable
    ├── EngineDead                 503  retryable
    ├── ServerDraining             503  retryable
    ├── WeightsSwapped             503  retryable
    ├── EngineBusy                 503  retryable
    ├── StoreUnavailable           503  retryable
    ├── DeadlineExpired            504  retryable
    ├── UpstreamRefused            4xx  a remote server found fault with the request
    ├── UpstreamFailed             502  retryable
    ├── UpstreamTimeout            504  retryable
    ├── UpstreamUnavailable        503  retryable
    ├── CredentialsExhausted       502  every key for a remote server is dead
    ├── RequestFailed              500  this request only; the engine goes on
    └── ConfigError                     the process does not start (exit code 2)
        ├── ModelFileBroken             truncated or corrupt weights
        ├── UnsupportedModel            architecture or quantization that is not served
        ├── OutOfMemory                 weights or KV pool do not fit
        ├── PullFailed                  a model could not be downloaded
        └── PortInUse

Every leaf has `code`, `http_status` and `retryable`; the message names the value, the limit and the remedy.
Raise at the first layer that knows. HTTP shapes are made in `api/errors.py` only.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of the tree. `param` names the offending request field where there is one."""

    code: str = "internal_error"
    http_status: int = 500
    retryable: bool = False
    headers: tuple[tuple[str, str], ...] = ()  # of the HTTP reply
    is_settled: bool = False  # what was done until then has its row in the ledger
    retry_after_s: float | None = None  # when another try is worth it, where that is known

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(HeadraceError):
    """The request cannot be served as it stands."""

    code, http_status, retryable = "invalid_request", 400, False


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for one output token."""

    code = "prompt_too_long"


class UnknownParameter(InvalidRequest):
    """A field of the body is not in the API."""

    code = "unknown_parameter"


class UnsupportedParameter(InvalidRequest):
    """A field is known to the wire but this server does not serve it."""

    code = "unsupported_parameter"


class MalformedBody(InvalidRequest):
    """The body is not JSON, or a field has the wrong type."""

    code = "malformed_body"


class BodyTooLarge(InvalidRequest):
    """The body exceeds `server.max_body_bytes`."""

    code, http_status, retryable = "body_too_large", 413, False


class TemplateFailed(InvalidRequest):
    """The model's chat template cannot render these messages."""

    code = "template_failed"


class Unauthorized(HeadraceError):
    """No key or a wrong key. `key_id` is the public part of what was presented; nothing proves it."""

    code, http_status, retryable = "invalid_api_key", 401, False
    key_id: str = ""


class Forbidden(HeadraceError):
    """The key is valid, but not for this: another role or other models."""

    code, http_status, retryable = "forbidden", 403, False
    key_id: str = ""
    tenant: str = ""


class NotFound(HeadraceError):
    """No tenant, key, limit or budget has this id."""

    code, http_status, retryable = "not_found", 404, False


class Conflict(HeadraceError):
    """A tenant, limit or budget of this id or kind exists already, or is in use."""

    code, http_status, retryable = "conflict", 409, False


class TaskExhausted(HeadraceError):
    """The task that `X-Task-Id` names has used its steps; trying again does not help."""

    code, http_status, retryable = "task_exhausted", 403, False


class BudgetExceeded(HeadraceError):
    """A hard budget does not cover this request; `scope` says whose budget it is."""

    code, http_status, retryable = "budget_exceeded", 402, False

    def __init__(self, message: str, *, scope: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.scope = scope
        self.retry_after_s = retry_after_s
        self.headers = (("x-headrace-budget-scope", scope),)


class RateLimited(HeadraceError):
    """Over a limit of requests, tokens or calls at a time; `retry_after_s` says when it has room again."""

    code, http_status, retryable = "rate_limit_exceeded", 429, True

    def __init__(self, message: str, *, retry_after_s: float, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = headers


class UnknownModel(HeadraceError):
    """The named model is not served here."""

    code, http_status, retryable = "model_not_found", 404, False


class UnknownRequest(HeadraceError):
    """No request of this id is running for this API key."""

    code, http_status, retryable = "request_not_found", 404, False


class RequestIdTaken(HeadraceError):
    """The `x-request-id` belongs to another stream that can still be resumed."""

    code, http_status, retryable = "request_id_taken", 409, False


class RequestCancelled(HeadraceError):
    """The request was ended by its id."""

    code, http_status, retryable = "request_cancelled", 409, False


class StreamExpired(HeadraceError):
    """The events that a client wants to go on with are not kept any more."""

    code, http_status, retryable = "stream_expired", 410, False


class KeyReused(HeadraceError):
    """The same `Idempotency-Key` came with another body."""

    code, http_status, retryable = "idempotency_key_reused", 422, False


class SwapRefused(HeadraceError):
    """The weights of a model cannot be swapped; the message says why, and nothing has changed."""

    code, http_status, retryable = "swap_refused", 409, False


class Overloaded(HeadraceError):
    """The queue is full; `retry_after_s` says when it is worth another try."""

    code, http_status, retryable = "overloaded", 429, True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineUnreachable(Overloaded):
    """The queue is so long that the first token would come after the request's `deadline_ms`."""

    code = "deadline_unreachable"


class ModelLoading(HeadraceError):
    """The server has just started and the model is not ready yet; the message says how far it is."""

    code, http_status, retryable = "model_loading", 503, True
    retry_after_s = 2.0


class EngineBusy(HeadraceError):
    """The engine has not answered a question in time; it is in a long step, or stuck."""

    code, http_status, retryable = "engine_busy", 503, True
    retry_after_s = 1.0


class EngineDead(HeadraceError):
    """The engine has stopped; the process is about to exit."""

    code, http_status, retryable = "engine_dead", 503, True
    retry_after_s = 5.0


class ServerDraining(HeadraceError):
    """The server was asked to stop: it takes no new requests, and cuts those that outlast `server.drain_s`."""

    code, http_status, retryable = "server_draining", 503, True
    retry_after_s = 5.0


class WeightsSwapped(HeadraceError):
    """The model's weights were swapped and the request did not end on the old ones in time; the new ones serve."""

    code, http_status, retryable = "weights_swapped", 503, True
    retry_after_s = 1.0


class StoreUnavailable(HeadraceError):
    """The gateway's database cannot be reached, is locked or is full."""

    code, http_status, retryable = "store_unavailable", 503, True
    retry_after_s = 2.0


class DeadlineExpired(HeadraceError):
    """The request's `deadline_ms` passed while it was waiting for its first token; nothing was generated."""

    code, http_status, retryable = "deadline_expired", 504, True


class UpstreamRefused(HeadraceError):
    """A remote server found fault with the request; its own status and words."""

    code, http_status, retryable = "upstream_refused", 400, False

    def __init__(self, message: str, *, http_status: int = 400, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.http_status = http_status


class UpstreamFailed(HeadraceError):
    """No remote server gave a whole answer: refused connections, errors, replies that make no sense."""

    code, http_status, retryable = "upstream_failed", 502, True


class UpstreamTimeout(HeadraceError):
    """A remote server did not answer, or fell silent, within its time."""

    code, http_status, retryable = "upstream_timeout", 504, True


class UpstreamUnavailable(HeadraceError):
    """Every remote server of this model is being left alone after failures; `retry_after_s` says for how long."""

    code, http_status, retryable = "upstream_unavailable", 503, True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CredentialsExhausted(HeadraceError):
    """Remote servers reject every key that is configured for them."""

    code, http_status, retryable = "upstream_credentials_exhausted", 502, False


class RequestFailed(HeadraceError):
    """This request failed inside the engine; the others go on."""

    code, http_status, retryable = "request_failed", 500, True


class ConfigError(HeadraceError):
    """The process cannot start as configured."""

    code, http_status, retryable = "config_error", 500, False


class ModelFileBroken(ConfigError):
    """A weight file is truncated or corrupt; the message names tensor and offset."""

    code = "model_file_broken"


class UnsupportedModel(ConfigError):
    """The architecture, quantization or tokenizer is not served; the message names it."""

    code = "unsupported_model"


class OutOfMemory(ConfigError):
    """Weights plus KV pool exceed the memory budget; the message has the numbers."""

    code = "out_of_memory"


class PullFailed(ConfigError):
    """A model could not be downloaded; what arrived is kept and resumed."""

    code = "pull_failed"


class PortInUse(ConfigError):
    """The listening port is taken."""

    code = "port_in_use"
