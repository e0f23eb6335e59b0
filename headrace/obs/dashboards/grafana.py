"""The overview dashboard as Grafana reads it.

Owns the layout: panels flow from left to right, 24 columns wide, each row under its heading. The data source and the
models are variables, so the same file serves every installation.
"""

from __future__ import annotations

from headrace.obs.dashboards.block_yaml import Data
from headrace.obs.dashboards.tables import Panel, PanelRow

_COLUMNS = 24
_HEIGHT = 8
_SOURCE: Data = {"type": "prometheus", "uid": "${datasource}"}


def overview(rows: tuple[PanelRow, ...]) -> dict[str, Data]:
    """Return the dashboard."""
    return {
        "uid": "headrace-overview",
        "title": "Headrace",
        "description": "Traffic, objectives, latency, engine, money and upstreams of Headrace servers.",
        "tags": ["headrace", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": _panels(rows),
    }


def _variables() -> list[Data]:
    models = "label_values(headrace_engine_up, model_name)"
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "model",
            "label": "Model",
            "type": "query",
            "datasource": _SOURCE,
            "definition": models,
            "query": {"query": models, "refId": "models"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _panels(rows: tuple[PanelRow, ...]) -> list[Data]:
    panels: list[Data] = []
    y = 0
    for row in rows:
        place: dict[str, Data] = {"h": 1, "w": _COLUMNS, "x": 0, "y": y}
        panels.append({"type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []})
        y += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + _HEIGHT
            panels.append(_panel(panel, {"h": _HEIGHT, "w": panel.width, "x": x, "y": y}))
            x += panel.width
        y += _HEIGHT
    return [{"id": number, **panel} for number, panel in enumerate(panels, 1) if isinstance(panel, dict)]


def _panel(panel: Panel, place: dict[str, Data]) -> dict[str, Data]:
    is_heatmap = panel.kind == "heatmap"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": _custom(panel)},
            "overrides": _overrides(panel),
        },
        "options": _options(panel),
        "targets": [
            {
                "refId": _ref(index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "format": "heatmap" if is_heatmap else "time_series",
                "range": True,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _overrides(panel: Panel) -> list[Data]:
    """Give queries with a unit of their own that unit, and an axis on the right."""
    return [
        {
            "matcher": {"id": "byFrameRefID", "options": _ref(index)},
            "properties": [
                {"id": "unit", "value": query.unit},
                {"id": "custom.axisPlacement", "value": "right"},
            ],
        }
        for index, query in enumerate(panel.queries)
        if query.unit
    ]


def _ref(index: int) -> str:
    """Return the letter by which Grafana knows a query."""
    return chr(ord("A") + index)


def _custom(panel: Panel) -> dict[str, Data]:
    if panel.kind != "timeseries":
        return {}
    mode = "normal" if panel.stack else "none"
    return {"fillOpacity": 30 if panel.stack else 5, "showPoints": "never", "stacking": {"mode": mode, "group": "A"}}


def _options(panel: Panel) -> dict[str, Data]:
    match panel.kind:
        case "timeseries":
            return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        case "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "value"}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Spectral"}}
