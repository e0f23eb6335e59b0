"""What an upstream says that an answer cost, as whole nano-dollars; recorded beside what the price says of it.

Owns the total of one upstream, and whether its nonsense has been warned of. A number that is none, negative, or beyond
what an answer can cost is not recorded and never a failure. A streamed answer's headers came before it: not read.
Source: `usage.cost` as OpenRouter, LiteLLM's proxy (streams) and this program report it, in dollars; OpenRouter's
`usage.cost_details` where the provider bills the caller's own key; the headers `x-litellm-response-cost` and ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TypeVar

import msgspec

from headrace.core.delta import Delta
from headrace.core.upstream_settings import CostTrust
from headrace.econ import NANO_PER_USD

_HEADERS = ("x-headrace-cost-usd", "x-litellm-response-cost")
_NOTHING = ("", "null", "None")  # LiteLLM writes None where it knows no price
_MOST_USD = 10_000
_NO_JSON = (b"NaN", b"Infinity")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class ToldCost(msgspec.Struct):
    """The fields of a usage that speak of money, as they came: no nonsense in them may break an answer.

    The base of each wire's usage.
    """

    cost: msgspec.Raw = msgspec.Raw()
    cost_details: msgspec.Raw = msgspec.Raw()
    is_byok: msgspec.Raw = msgspec.Raw()


class _Details(msgspec.Struct):
    upstream_inference_cost: msgspec.Raw = msgspec.Raw()


class ReportedCosts:
    """Reads what one upstream reports. `total_nano` is the sum of what was recorded."""

    def __init__(self, upstream: str, trust: CostTrust) -> None:
        self._upstream = upstream
        self._trust = trust
        self._has_warned = False
        self.total_nano = 0

    def note(self, delta: Delta, told: ToldCost | None, headers: Mapping[str, str]) -> Delta:
        """Return a delta of a reply; the one with the usage, with what was reported of the answer's cost."""
        if delta.usage is None or self._trust == "ignore":
            return delta
        nano = self._of_usage(told) if told is not None else None
        for name in _HEADERS:
            if nano is None and (text := headers.get(name)) is not None:
                nano = self._read(text.strip(), name)
        if nano is None:
            return delta
        self.total_nano += nano
        cost_nano = nano if self._trust == "charge" else None
        return msgspec.structs.replace(
            delta, usage=msgspec.structs.replace(delta.usage, reported_nano=nano, cost_nano=cost_nano)
        )

    def _of_usage(self, told: ToldCost) -> int | None:
        nano = self._read(_spelled(told.cost), "usage.cost")
        if nano is not None and bytes(told.is_byok) == b"true":
            with contextlib.suppress(msgspec.DecodeError):
                behind = msgspec.json.decode(told.cost_details, type=_Details).upstream_inference_cost
                nano += self._read(_spelled(behind), "usage.cost_details.upstream_inference_cost") or 0
        return nano

    def _read(self, text: str, place: str) -> int | None:
        """Return an amount, to the nearest nano-dollar; None for none."""
        if text in _NOTHING:
            return None
        try:
            usd = Decimal(text)
        except InvalidOperation:
            usd = Decimal("NaN")
        if usd.is_finite() and 0 <= usd <= _MOST_USD:
            return round(usd * NANO_PER_USD)
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "upstream '%s' reports a cost of %.40r in %s, which is no amount from 0 to %s dollars; such costs are "
                'not recorded; set upstreams.%s.reported_cost = "ignore" if it has no better ones',
                *(self._upstream, text, place, f"{_MOST_USD:,}", self._upstream),
            )
        return None


def _spelled(raw: msgspec.Raw) -> str:
    return bytes(raw).decode(errors="replace")


def decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """Decode a reply, also one whose only fault is a number that JSON has not. Raises msgspec.DecodeError."""
    try:
        return decoder.decode(data)
    except msgspec.DecodeError:
        if not any(word in data for word in _NO_JSON):
            raise
        try:
            cured = json.dumps(json.loads(data, parse_constant=str)).encode()
        except (ValueError, RecursionError):
            cured = data
        return decoder.decode(cured)
