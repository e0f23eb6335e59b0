"""Settings of remote upstreams: where they are, what they serve, and how failures are met.

Owns the fields and their defaults; `core.settings` reads them from file and environment.
Invariant: no key stands in a configuration file; `api_key` says where it is kept.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

ProfileName = Literal[
    "generic", "openai", "anthropic", "headrace", "vllm", "sglang", "tgi", "trtllm", "llamacpp", "ollama", "lmdeploy"
]
CostTrust = Literal["note", "charge", "ignore"]
Choice = Literal["weighted", "least_load", "latency"]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One remote server, `[upstreams.NAME]` in the file.

    url              where its API lives, such as http://10.0.0.5:8000/v1
    profile          what kind of server it is; generic is any that speaks OpenAI's wire
    models           public name = name at the upstream; several upstreams with one public name are a pool
    api_key          where its key is kept: env:NAME or file:PATH; a list of them is tried in order
    weight           share of the traffic among upstreams of one model
    max_parallel     requests at a time
    max_context      prompt + output of its models, in tokens, where it is known
    max_tokens       answer length for servers that insist on one, when the request gives none
    connect_s        seconds to connect
    first_byte_s     seconds until a stream begins
    idle_s           longest silence inside a stream, in seconds
    total_s          longest whole answer, in seconds
    max_reply_bytes  largest whole answer, and largest stream, in bytes
    max_event_bytes  largest event of a stream, in bytes
    reported_cost    what it says that an answer cost: note it in the ledger, charge callers that, or ignore it
    headers          further request headers
    """

    url: str
    models: Annotated[dict[str, str], msgspec.Meta(min_length=1)]
    profile: ProfileName = "generic"
    api_key: str | list[str] | None = None
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    max_parallel: Count = 256
    max_context: Count | None = None
    max_tokens: Count = 4096
    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 60.0
    idle_s: Seconds = 60.0
    total_s: Seconds = 900.0
    max_reply_bytes: Count = 64 << 20
    max_event_bytes: Count = 4 << 20
    reported_cost: CostTrust = "note"
    headers: dict[str, str] = {}


class FailoverSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens when a remote upstream fails before its first token.

    choice             among upstreams of one model: weighted; least_load or latency between two drawn by weight
    retry_s            seconds within which another attempt may begin; 0 never tries again
    retry_ratio        retries, as a share of all requests, at most
    backoff_s          first pause before the same upstream is tried again; doubles, up to 5 s
    breaker_failures   share of recent attempts that must fail before an upstream is left alone
    breaker_min_calls  attempts before that share means anything
    breaker_open_s     seconds it is left alone; then one request goes through to see, and the time doubles if it fails
    hedge_after_s      seconds without a first token after which a second upstream is asked as well; None: never
    """

    choice: Choice = "least_load"
    retry_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    retry_ratio: Share = 0.1
    backoff_s: Seconds = 0.25
    breaker_failures: Share = 0.5
    breaker_min_calls: Count = 5
    breaker_open_s: Seconds = 10.0
    hedge_after_s: Seconds | None = None
