"""Settings of graceful degradation. `core.settings` reads them; `api.ladder` carries them out."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]


class DegradeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers get less of when there is not enough for all.

    steps         by model, in the order to be tried: shed:PRIORITY, cache, shorter:TOKENS, model:NAME (by blanks)
    over_ttft_ms  milliseconds to the first token that are expected and too many; None: only refusals count
    soft_budget   whether a caller whose soft budget is exceeded gets less, too
    cache_mib     MiB of answers that are kept for the step cache
    cache_s       seconds that they are kept
    """

    steps: dict[str, str] = {}
    over_ttft_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    soft_budget: bool = True
    cache_mib: Count = 64
    cache_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
