"""The tables that dashboards and alerts are made from, read once.

Owns nothing. `panels.toml` and `alerts.toml` ship with the package; their shape is checked here.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec


class Query(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One line of a panel. With a `unit` of its own it is drawn against the axis on the right."""

    legend: str
    expr: str
    unit: str = ""


class Panel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One panel; `unit` is that of all queries that have none of their own."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    help: str = ""
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    width: int = 8
    stack: bool = False


class PanelRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...] = msgspec.field(name="panel")


class Alert(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One alert, and its test: with the series of `fires` it fires `at` that time with `labels`; not with `quiet`.

    Series are (name with labels, values in promtool's notation, one per `interval`).
    """

    name: str
    expr: str
    severity: Literal["page", "ticket", "info"]
    summary: str
    description: str
    at: str
    labels: dict[str, str]
    fires: tuple[tuple[str, str], ...]
    quiet: tuple[tuple[str, str], ...]
    interval: str = "1m"
    hold: str = msgspec.field(default="0m", name="for")


class _Panels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    row: tuple[PanelRow, ...]


class _Alerts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alert: tuple[Alert, ...]


@cache
def panel_rows() -> tuple[PanelRow, ...]:
    """Return the overview dashboard's rows."""
    return msgspec.toml.decode(_read("panels.toml"), type=_Panels).row


@cache
def fixed_alerts() -> tuple[Alert, ...]:
    """Return the alerts that no configuration changes."""
    return msgspec.toml.decode(_read("alerts.toml"), type=_Alerts).alert


def _read(name: str) -> str:
    return (resources.files("headrace.obs.dashboards") / name).read_text(encoding="utf-8")
