"""What attempts may have cost whose usage an upstream never told: those that broke off, and those that were left.

Owns the totals of one upstream. Estimates, and called so everywhere: the prompt's words at four bytes a token, the
answer as far as it came by, at the price that callers pay. Whether a provider bills such an attempt is its own affair;
refused connections and replies that are errors are not counted, because nothing was computed.
Invariant: nothing is done here for an attempt that ends well and tells its usage.
"""

from __future__ import annotations

from headrace.core.delta import Usage
from headrace.gateway.budgets.price import PriceOf, TokenCounts


class Uncounted:
    """Sums up. `nano` is without the attempts of models that have no price; `num_unpriced` counts those."""

    def __init__(self, price_of: PriceOf | None = None) -> None:
        self._price_of = price_of
        self.num = 0
        self.num_unpriced = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.nano = 0

    def note(self, model: str, usage: Usage) -> None:
        """Count one attempt for the public name `model` that came to about `usage`."""
        self.num += 1
        self.input_tokens += usage.prompt_tokens
        self.output_tokens += usage.completion_tokens
        price = None if self._price_of is None else self._price_of(model)
        if price is None:
            self.num_unpriced += 1
        else:
            counts = TokenCounts(input_uncached=usage.prompt_tokens, output_text=usage.completion_tokens)
            self.nano += price.cost_nano(counts)
