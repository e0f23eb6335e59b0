"""`headrace why ID`: ask a running server why a request waits, was preempted or refused.

Owns how an explanation is shown. Exit code 0 with an answer, 1 if the server has none.
"""

from __future__ import annotations

import argparse
import sys
from urllib.parse import quote

import httpx
import msgspec

from headrace.core.errors import HeadraceError, RequestFailed
from headrace.core.why import Explanation

_TIMEOUT_S = 15.0


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Error


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    url = f"{args.url.rstrip('/').removesuffix('/v1')}/v1/requests/{quote(args.id, safe='')}/why"
    headers = {"authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    try:
        reply = httpx.get(url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as err:
        raise RequestFailed(f"no answer from {url}: {err}; is the server running?") from err
    if reply.status_code != 200:
        raise _refused(reply)
    if args.json:
        sys.stdout.write(reply.text + "\n")
    else:
        _print(msgspec.json.decode(reply.content, type=Explanation))
    return 0


def _print(explanation: Explanation) -> None:
    print(f"{explanation.id} · {explanation.model} · {explanation.state} · came {explanation.age_s:,.1f} s ago")
    print(explanation.sentence)
    for choice in explanation.choices:
        if choice.sentence != explanation.sentence:
            print(f"  choice {choice.index}: {choice.sentence}")


def _refused(reply: httpx.Response) -> HeadraceError:
    try:
        said = msgspec.json.decode(reply.content, type=_Refusal).error.message
    except msgspec.MsgspecError:
        said = "no reason given"
    return RequestFailed(f"the server answered {reply.status_code}: {said}")
