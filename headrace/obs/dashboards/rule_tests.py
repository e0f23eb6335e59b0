"""Unit tests of the rules, for `promtool test rules`: each alert fires on its series and keeps quiet on the others.

Owns nothing. Series are in the table beside the alert (`alerts.toml`) or made with it (`rules.py`).
"""

from __future__ import annotations

import re

from headrace.core.slo_settings import SloSettings
from headrace.obs.dashboards.block_yaml import Data
from headrace.obs.dashboards.rules import GROUPS, all_alerts
from headrace.obs.dashboards.tables import Alert

_LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")


def rule_tests(slo: SloSettings, rule_file: str) -> dict[str, Data]:
    """Return the test file for alerts that look at minutes."""
    return _tests([alert for alert in all_alerts(slo) if alert.interval == "1m"], rule_file, "1m")


def slow_rule_tests(slo: SloSettings, rule_file: str) -> dict[str, Data]:
    """Return the test file for alerts that look at hours and days, in longer steps."""
    return _tests([alert for alert in all_alerts(slo) if alert.interval != "1m"], rule_file, "30m")


def _tests(alerts: list[Alert], rule_file: str, step: str) -> dict[str, Data]:
    tests: list[Data] = []
    for alert in alerts:
        tests += [_test(alert, alert.fires, [_expected(alert)]), _test(alert, alert.quiet, [])]
    return {
        "rule_files": [rule_file],
        "evaluation_interval": step,
        "group_eval_order": list(GROUPS),  # alerts see what was recorded at the same moment
        "tests": tests,
    }


def _test(alert: Alert, series: tuple[tuple[str, str], ...], expected: list[Data]) -> Data:
    return {
        "name": f"{alert.name} {'fires' if expected else 'keeps quiet'}",
        "interval": alert.interval,
        "input_series": [{"series": name, "values": values} for name, values in series],
        "alert_rule_test": [{"eval_time": alert.at, "alertname": alert.name, "exp_alerts": expected}],
    }


def _expected(alert: Alert) -> Data:
    def fill(text: str) -> str:
        return _LABEL.sub(lambda hit: alert.labels[hit[1]], text)

    return {
        "exp_labels": {**alert.labels, "severity": alert.severity},
        "exp_annotations": {"summary": fill(alert.summary), "description": fill(alert.description)},
    }
