"""`headrace swap`: other weights for a model of a running server."""

from __future__ import annotations

import argparse
from urllib.parse import quote

import httpx
import msgspec

from headrace.cli.configured import settings_from
from headrace.core.errors import RequestFailed
from headrace.core.swap import SwapReply

_CONNECT_TIMEOUT_S = 5.0


class _Error(msgspec.Struct, frozen=True):
    message: str = "no reason given"


class _Refusal(msgspec.Struct, frozen=True):
    error: _Error = _Error()


def run(args: argparse.Namespace) -> int:
    """Swap and wait until new requests get the new weights."""
    key = settings_from(args).server.api_key
    url = f"{args.url.rstrip('/').removesuffix('/v1')}/admin/models/{quote(args.model, safe='')}/swap"
    body = {"source": args.source} | ({} if args.wait_s is None else {"drain_s": args.wait_s})
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=timeout, trust_env=False)
    except httpx.HTTPError as err:
        raise RequestFailed(f"no answer from {args.url}: {err}; is the server running?") from err
    try:
        if response.status_code != 200:
            said = msgspec.json.decode(response.content, type=_Refusal).error.message
            raise RequestFailed(f"{args.url} answered {response.status_code}: {said}")
        reply = msgspec.json.decode(response.content, type=SwapReply)
    except msgspec.DecodeError as err:
        raise RequestFailed(f"{args.url} does not answer as a headrace server; check --url") from err
    print(
        f"{reply.model} has new weights after {reply.seconds:.1f} s: {reply.system_fingerprint} in place of "
        f"{reply.previous_fingerprint}; {reply.num_finishing} sequences finish on the old ones"
    )
    return 0
