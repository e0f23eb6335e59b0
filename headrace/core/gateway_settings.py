"""Settings of limits and budgets. `core.settings` reads them; what they are about is kept in the database."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits and budgets, where there is a database.

    lease_s         seconds after which what a gateway that is gone had reserved is released
    lend_share      a gateway may hold one such part of what limits and budgets have left, for a caller that asks again
                    and again, and grant from it without asking the database; 0: it asks for every request
    least_output    tokens: a budget that pays for fewer refuses a request instead of cutting its answer short
    default_output  tokens of a remote model's answer at most, where the caller does not say and a budget pays
    unpriced        requests under a hard budget for a model without a price: refuse, or allow them uncounted
    prices          dollars per million tokens by model: INPUT/OUTPUT[/CACHED[/WRITTEN[/WRITTEN_1H]]], book:NAME/MODEL
    price_book      file of dated prices, made by `headrace prices import`
    usd_per_hour    what this machine costs in an hour, in dollars or as a machine of the catalogue such as h100-sxm
    ledger_s        seconds between two records of the engines' time in the ledger
    digests         keep keyed digests of requests and of beginnings of prompts in the ledger, never their content: for
                    `headrace audit stack` to find repeats and common prefixes
    """

    lease_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    lend_share: Annotated[int, msgspec.Meta(ge=0)] = 32
    least_output: Count = 16
    default_output: Count = 4096
    unpriced: Literal["refuse", "allow"] = "refuse"
    prices: dict[str, str] = {}
    price_book: str | None = None
    usd_per_hour: str | None = None
    ledger_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    digests: bool = True
