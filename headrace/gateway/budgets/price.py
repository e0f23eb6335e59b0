"""What tokens cost: disjoint buckets, exact prices, and the seam to whoever knows them.

Owns nothing. A price is in nano-dollars per million tokens, so $0.0375 per million is a whole number too. A cost is one
sum and one rounding, to the nearest; the most that something can cost is rounded up, so it is never less than the cost.
Source: token buckets after OpenAI's and Anthropic's usage objects, made disjoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from headrace.econ.attribution import divide
from headrace.econ.money import rounded

_MTOK = 10**6


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one request in disjoint buckets: their sum is every token that was read or written.

    cache_write     written to a cache for the provider's usual time; cache_write_1h: for an hour, at a price of its own
    """

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output_text: int = 0
    output_reasoning: int = 0
    cache_write_1h: int = 0

    @property
    def num_input(self) -> int:
        """Return all tokens of the prompt."""
        return self.input_uncached + self.cache_read + self.cache_write + self.cache_write_1h

    @property
    def num_output(self) -> int:
        """Return all tokens of the answer."""
        return self.output_text + self.output_reasoning


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice:
    """Nano-dollars per million tokens of each bucket; `source` says where the price is from and of which version.

    cache_write_1h  None: what other writing costs
    longer  what all tokens cost instead when the prompt has more tokens than a bound, by rising bound
    """

    input_uncached: int
    cache_read: int
    cache_write: int
    output_text: int
    output_reasoning: int
    source: str
    cache_write_1h: int | None = None
    longer: tuple[tuple[int, TokenPrice], ...] = ()
    _write_1h: int = field(init=False, repr=False, compare=False)
    _dearest: tuple[int, int] = field(init=False, repr=False, compare=False)  # of input and of output

    def __post_init__(self) -> None:
        """Work out what every request asks for."""
        write_1h = self.cache_write if self.cache_write_1h is None else self.cache_write_1h
        given = max(self.input_uncached, self.cache_read, self.cache_write, write_1h)
        made = max(self.output_text, self.output_reasoning)
        for _, price in self.longer:
            given, made = max(given, price._dearest[0]), max(made, price._dearest[1])
        object.__setattr__(self, "_write_1h", write_1h)
        object.__setattr__(self, "_dearest", (given, made))

    def cost_nano(self, counts: TokenCounts) -> int:
        """Return what these tokens cost, to the nearest nano-dollar."""
        return rounded(sum(self._exact(counts)), _MTOK)

    def parts_nano(self, counts: TokenCounts) -> tuple[int, int, int]:
        """Divide that cost over input computed or written, input read from a cache, and output; the parts add up."""
        exact = fresh, cached, output = self._exact(counts)
        if not (fresh % _MTOK or cached % _MTOK or output % _MTOK):
            return fresh // _MTOK, cached // _MTOK, output // _MTOK
        fresh, cached, output = divide(rounded(fresh + cached + output, _MTOK), exact)
        return fresh, cached, output

    def _exact(self, counts: TokenCounts) -> tuple[int, int, int]:
        """Return the cost of fresh input, cached input and output in millionths of a nano-dollar."""
        price = self
        if self.longer:
            num_input = counts.num_input
            for above, other in self.longer:
                if num_input > above:
                    price = other
        return (
            counts.input_uncached * price.input_uncached
            + counts.cache_write * price.cache_write
            + counts.cache_write_1h * price._write_1h,
            counts.cache_read * price.cache_read,
            counts.output_text * price.output_text + counts.output_reasoning * price.output_reasoning,
        )

    def most_nano(self, num_input: int, num_output: int) -> int:
        """Return the most that a request can cost: all of it in the dearest buckets."""
        given, made = self._dearest
        return -(-(num_input * given + num_output * made) // _MTOK)

    def affordable_output(self, num_input: int, nano: int) -> int | None:
        """Return how many output tokens `nano` surely pays for beside the input; None: any number, they are free.

        Negative when not even the input is paid for.
        """
        given, made = self._dearest
        left = nano * _MTOK - num_input * given
        if left < 0:
            return -1
        return None if made == 0 else left // made


class PriceOf(Protocol):
    """Knows what a model's tokens cost now."""

    def __call__(self, model: str) -> TokenPrice | None:
        """Return the price in force, or None where it is not known: never zero for lack of knowledge."""
        ...
