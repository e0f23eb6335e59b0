"""`headrace upstreams`: which remote servers are configured, and whether they can be used now."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

import msgspec
from rich.table import Table

from headrace.app.remote import probe_upstreams
from headrace.cli.configured import settings_from
from headrace.cli.tables import print_table
from headrace.core.errors import ConfigError

if TYPE_CHECKING:
    from headrace.gateway.upstream import UpstreamProbe


def run(args: argparse.Namespace) -> int:
    """Ask every upstream and print one row each; return 1 if one cannot be used."""
    settings = settings_from(args)
    if not settings.upstreams:
        raise ConfigError("no remote upstream is configured; add [upstreams.NAME] to the file that --config names")
    probes = asyncio.run(probe_upstreams(settings))
    if args.json:
        sys.stdout.write(msgspec.json.encode(probes).decode() + "\n")
    else:
        _print(probes)
    return 1 if any(probe.problem for probe in probes) else 0


def _print(probes: list[UpstreamProbe]) -> None:
    table = Table(box=None)
    for column in ("upstream", "profile", "url", "models", "ms", "state"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for probe in probes:
        models = ", ".join(public if public == own else f"{public} = {own}" for public, own in probe.models.items())
        millis = "" if probe.round_trip_s is None else f"{probe.round_trip_s * 1e3:.0f}"
        table.add_row(probe.name, probe.profile, probe.url, models, millis, probe.problem or "ok")
    print_table(table)
