"""What came of a swap of weights. A value; made by `app.swapping`, told by `api.swap`."""

from __future__ import annotations

import msgspec


class SwapReply(msgspec.Struct, frozen=True, kw_only=True):
    """The new weights are being served; `num_finishing` sequences still run on the old ones."""

    model: str
    source: str
    system_fingerprint: str
    previous_fingerprint: str
    num_finishing: int
    seconds: float
