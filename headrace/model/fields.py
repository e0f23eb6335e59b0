"""`Fields`: typed reading of a raw model config, so that every wrong value is named with its limit.

Pure. Both config readers use it: GGUF metadata (keys under `llama.` and the like) and config.json.
Invariant: what comes out is a plain Python value inside its limits; what does not fit is ModelFileBroken.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.core.errors import ModelFileBroken, UnsupportedModel

_MAX_SIZE = 1 << 24


class Fields:
    """Reads values of `values` under `prefix`; `source` names the file in errors."""

    def __init__(self, values: Mapping[str, object], *, source: str, prefix: str = "") -> None:
        self._values, self._source, self._prefix = values, source, prefix

    def get(self, key: str) -> object:
        """Return the raw value, None where it is missing or null."""
        return self._values.get(self._prefix + key)

    def wrong(self, key: str, expected: str) -> ModelFileBroken:
        """Make the error for a value that is not what it should be."""
        return ModelFileBroken(f"{self._source}: '{self._prefix}{key}' is {self.get(key)!r}, not {expected}")

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive size. A list with one entry per layer must have one value."""
        value = self.get(key)
        if isinstance(value, list) and value:
            if any(item != value[0] for item in value):
                raise UnsupportedModel(
                    f"{self._source}: '{self._prefix}{key}' differs from layer to layer, which is not served"
                )
            value = value[0]
        if value is None:
            if default is None:
                raise ModelFileBroken(f"{self._source}: '{self._prefix}{key}' is missing; get the model again")
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZE:
            raise self.wrong(key, f"a size from 1 to {_MAX_SIZE:,}")
        return value

    def size_or_none(self, key: str) -> int | None:
        """Return a positive size, or None where it is missing, null or zero."""
        return self.size(key) if self.get(key) else None

    def number(self, key: str, default: float) -> float:
        """Return a positive, finite number."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.wrong(key, "a positive number")
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        """Return a positive number, or None where it is missing, null or zero: all mean "off"."""
        return self.number(key, 1.0) if self.get(key) else None

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def word(self, key: str, default: str) -> str:
        """Return a string."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def tokens(self, key: str) -> tuple[int, ...]:
        """Return token ids: none, one, or a list of them."""
        value = self.get(key)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in found):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(found)

    def token(self, key: str) -> int | None:
        """Return one token id, the first of a list."""
        return next(iter(self.tokens(key)), None)

    def table(self, key: str) -> Fields | None:
        """Return the fields of a nested object, None where it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, source=f"{self._source} {key}")


def end_tokens(vocab_size: int, *groups: tuple[int, ...]) -> tuple[int, ...]:
    """Join groups of end tokens without repeats; ModelFileBroken when one is outside the vocabulary."""
    found = tuple(dict.fromkeys(token for group in groups for token in group))
    for token in found:
        if token >= vocab_size:
            raise ModelFileBroken(f"end token {token:,} is outside the vocabulary of {vocab_size:,} tokens")
    return found
