"""What an hour of a machine costs: a number from the configuration, or a dated quote from the catalogue.

Owns `machines.toml`, read when it is asked for. Quotes are somebody's numbers of a date; one's own bill is better.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import NamedTuple

from headrace.core.errors import ConfigError
from headrace.econ.money import parse_usd


class MachineRate(NamedTuple):
    """Nano-dollars per hour, and where the number is from."""

    nano_per_hour: int
    source: str


@cache
def catalogue() -> dict[str, MachineRate]:
    """Return the quotes by the machine's name."""
    text = (resources.files("headrace.econ") / "machines.toml").read_text(encoding="utf-8")
    return {
        name: MachineRate(parse_usd(entry["usd_per_hour"]), f"catalogue {name}, {entry['as_of']}")
        for name, entry in tomllib.loads(text).items()
    }


def machine_rate(text: str) -> MachineRate:
    """Read dollars per hour, or the name of a machine of the catalogue, `8 x NAME` for several. Raises ConfigError."""
    count_text, times, name = text.partition("x ")
    count = int(count_text) if times and count_text.strip().isdecimal() else 1
    name = name.strip() if times and count_text.strip().isdecimal() else text.strip()
    if (quote := catalogue().get(name)) is not None:
        return MachineRate(count * quote.nano_per_hour, f"{count} x {quote.source}" if count > 1 else quote.source)
    try:
        return MachineRate(parse_usd(text.strip()), "config")
    except ValueError as err:
        names = ", ".join(sorted(catalogue()))
        raise ConfigError(
            f"gateway.usd_per_hour is '{text}'; write dollars such as 0.35, or a machine, '2 x h100-sxm': {names}"
        ) from err
