"""`headrace warm FILE`: have a running server compute prompts and keep them, so that nobody waits for them later.

Owns nothing that outlives the call. Each line of the file is sent as it is; the file is checked before any is sent.
"""

from __future__ import annotations

import argparse

import httpx
import msgspec

from headrace.app.warming import read_warm_file
from headrace.core.errors import RequestFailed


class _Error(msgspec.Struct):
    message: str


class _Reply(msgspec.Struct):
    model: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Reply)


def run(args: argparse.Namespace) -> int:
    """Send every line; print what was kept. Raises ConfigError for the file, RequestFailed for what the server says."""
    bodies = read_warm_file(args.file)
    headers = {"content-type": "application/json"}
    if args.api_key:
        headers["authorization"] = f"Bearer {args.api_key}"
    url = args.url.rstrip("/").removesuffix("/v1") + "/v1/prefixes"
    with httpx.Client(headers=headers, timeout=None, trust_env=False) as client:
        for number, body in enumerate(bodies, 1):
            if args.ttl_s is not None:
                body = msgspec.structs.replace(body, ttl_s=args.ttl_s)
            try:
                response = client.post(url, content=msgspec.json.encode(body))
            except httpx.HTTPError as error:
                raise RequestFailed(f"no answer from {url}: {error}; is the server running?") from error
            reply = _read(response)
            if response.status_code != 200:
                said = reply.error.message if reply.error is not None else "no reason given"
                raise RequestFailed(f"prompt {number}: {url} answered {response.status_code}: {said}")
            print(f"{reply.model}: kept {reply.prompt_tokens} tokens, {reply.cached_tokens} of them were there")
    return 0


def _read(response: httpx.Response) -> _Reply:
    try:
        return _decoder.decode(response.content)
    except msgspec.DecodeError:
        return _Reply()
