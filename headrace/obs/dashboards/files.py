"""The files of `headrace dashboards`: what Grafana and Prometheus are given.

Owns their names. All are made from the tables and the configuration; nothing is read from a running server.
"""

from __future__ import annotations

import json

from headrace.core.settings import Settings
from headrace.obs.dashboards.block_yaml import Data, to_yaml
from headrace.obs.dashboards.grafana import overview
from headrace.obs.dashboards.rule_tests import rule_tests, slow_rule_tests
from headrace.obs.dashboards.rules import rule_groups
from headrace.obs.dashboards.tables import panel_rows

_RULES = "headrace-rules.yml"
_MADE = "Made by `headrace dashboards`; make it again when slo, server or database settings change."
_TEST = f"{_MADE}\nFor `promtool test rules`: each alert fires where it should and keeps quiet where it should not."


def monitoring_files(settings: Settings) -> dict[str, str]:
    """Return file name → text."""
    return {
        "headrace-overview.json": json.dumps(overview(panel_rows()), indent=2, ensure_ascii=False) + "\n",
        _RULES: to_yaml(rule_groups(settings.slo), _MADE),
        "headrace-rules-test.yml": to_yaml(rule_tests(settings.slo, _RULES), _TEST),
        "headrace-slow-rules-test.yml": to_yaml(slow_rule_tests(settings.slo, _RULES), _TEST),
        "prometheus.yml": to_yaml(_scrape(settings), _MADE),
    }


def _scrape(settings: Settings) -> dict[str, Data]:
    """Return a Prometheus configuration that scrapes the server of these settings, every 15 seconds."""
    server = settings.server
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::") else server.host
    job: dict[str, Data] = {
        "job_name": "headrace",
        "scheme": "http" if server.tls_cert is None else "https",
        "static_configs": [{"targets": [f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"]}],
    }
    if server.api_key is not None or settings.database is not None:
        job["authorization"] = {"credentials_file": "headrace.key"}  # /metrics needs a key where there are keys
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": [_RULES],
        "scrape_configs": [job],
    }
