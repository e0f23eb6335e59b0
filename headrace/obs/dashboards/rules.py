"""Prometheus rules: what is recorded, and what is woken up for.

Owns the windows and factors of burn-rate alerts. An error budget is 1 − slo.target of the requests of 30 days; a burn
of 14.4 over an hour uses 2 % of it. Each alert looks at a long window and a short one, so that it fires on what matters
and ends soon after. Shares come from counters of good and counted requests, so nothing is interpolated.
Source: Google's SRE Workbook, "Alerting on SLOs", §6.
"""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from headrace.core.slo_settings import SloSettings
from headrace.obs.dashboards.block_yaml import Data
from headrace.obs.dashboards.tables import Alert, fixed_alerts

GROUPS = ("headrace-objectives", "headrace-latency", "headrace-money", "headrace-alerts")
_LEAST_REQUESTS = 20  # in the long window; below that one failure would be a catastrophe
_WORST = 0.9  # a share of bad answers that is alarming however low the target is
_HISTOGRAMS = {
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
}
_PERCENTILES = {**_HISTOGRAMS, "itl": "vllm:inter_token_latency_seconds", "queue": "vllm:request_queue_time_seconds"}


class Burn(NamedTuple):
    """One burn-rate alert."""

    name: str
    factor: float
    long: str
    short: str
    severity: Literal["page", "ticket"]


BURNS = (
    Burn("HeadraceErrorBudgetBurnsFast", 14.4, "1h", "5m", "page"),
    Burn("HeadraceErrorBudgetBurns", 6.0, "6h", "30m", "page"),
    Burn("HeadraceErrorBudgetBurnsSlowly", 3.0, "1d", "2h", "ticket"),
    Burn("HeadraceErrorBudgetWillBeSpent", 1.0, "3d", "6h", "ticket"),
)
_MINUTES = {"5m": 5, "30m": 30, "1h": 60, "2h": 120, "6h": 360, "1d": 1440, "3d": 4320}


def all_alerts(slo: SloSettings) -> list[Alert]:
    """Return every alert with its test."""
    return [*(_burn_alert(burn, slo.target) for burn in BURNS), *fixed_alerts()]


def rule_groups(slo: SloSettings) -> dict[str, Data]:
    """Return the rule file."""
    objectives: list[Data] = [*_bad_ratios(), *_met_ratios(slo)]
    alerts: list[Data] = [_alert_rule(alert) for alert in all_alerts(slo)]
    rules = (objectives, _percentiles(), _money(), alerts)
    return {"groups": [{"name": name, "rules": group} for name, group in zip(GROUPS, rules, strict=True)]}


def _bad_ratios() -> list[Data]:
    rules: list[Data] = []
    for window in _MINUTES:
        good, counted = (
            f"sum by (model_name) (rate(headrace_{name}_requests_total[{window}]))" for name in ("goodput", "slo")
        )
        rules.append({"record": f"headrace:slo_bad_ratio:rate{window}", "expr": f"1 - {good} / {counted}"})
    for burn in BURNS:
        counted = f"sum by (model_name) (increase(headrace_slo_requests_total[{burn.long}]))"
        rules.append({"record": f"headrace:slo_requests:increase{burn.long}", "expr": counted})
    return rules


def _met_ratios(slo: SloSettings) -> list[Data]:
    """Record, for each objective, the share of requests within it: exact, as each objective is a bucket's edge."""
    own = [model for model in slo.by_model if slo.of(model) != slo.of("")]
    others = f"model_name!~{_quoted('|'.join(map(_literal, own)))}" if own else ""
    shares: dict[str, list[str]] = {}
    for selector, objectives in ((others, slo.of("")), *((f"model_name={_quoted(m)}", slo.of(m)) for m in own)):
        for name, seconds in objectives.named():
            shares.setdefault(name, []).append(_share_within(_HISTOGRAMS[name], seconds, selector))
    return [
        {"record": "headrace:objective_met_ratio:rate5m", "expr": " or ".join(exprs), "labels": {"objective": name}}
        for name, exprs in shares.items()
    ]


def _share_within(histogram: str, seconds: float, selector: str) -> str:
    within = ", ".join(filter(None, (selector, f'le="{seconds}"')))
    return (
        f"sum by (model_name) (rate({histogram}_bucket{{{within}}}[5m])) / "
        f"sum by (model_name) (rate({histogram}_count{{{selector}}}[5m]))"
    )


def _percentiles() -> list[Data]:
    rules: list[Data] = []
    for name, histogram in _PERCENTILES.items():
        for percent in (50, 95, 99):
            buckets = f"sum by (model_name, le) (rate({histogram}_bucket[5m]))"
            rules.append(
                {
                    "record": f"headrace:{name}_seconds:p{percent}_5m",
                    "expr": f"histogram_quantile({percent / 100}, {buckets})",
                }
            )
    return rules


def _money() -> list[Data]:
    time, usd = "headrace_engine_time_seconds_total", "headrace_engine_usd_total"
    idle, whole = (f"sum by (model_name) (rate({time}{{{which}}}[6h]))" for which in ('account="idle"', ""))
    tokens = "sum by (model_name) (rate(vllm:generation_tokens_total[1h]))"
    return [
        {"record": "headrace:idle_ratio:rate6h", "expr": f"{idle} / {whole}"},
        {
            "record": "headrace:usd_per_million_tokens:rate1h",
            "expr": f"1e6 * sum by (model_name) (rate({usd}[1h])) / {tokens}",
        },
    ]


def _burn_alert(burn: Burn, target: float) -> Alert:
    limit = round(min(burn.factor * (1 - target), _WORST), 9)
    ratio = "headrace:slo_bad_ratio:rate{}".format
    expr = (
        f"{ratio(burn.long)} > {limit} and {ratio(burn.short)} > {limit} "
        f"and headrace:slo_requests:increase{burn.long} >= {_LEAST_REQUESTS}"
    )
    interval = _MINUTES[burn.short] // 5
    steps = _MINUTES[burn.long] // interval
    series = ('headrace_slo_requests_total{model_name="m"}', 'headrace_goodput_requests_total{model_name="m"}')
    most, few = 1000 * (1 - min(1.0, 1.1 * limit)), 1000 * (1 - 0.9 * limit)
    return Alert(
        name=burn.name,
        expr=expr,
        severity=burn.severity,
        summary="{{ $labels.model_name }} misses its objectives "
        + (f"{burn.factor:g} times as often as it may" if burn.factor > 1 else "more often than it may"),
        description=f"More than {limit:.4%} of its requests of the last {burn.long} were late or failed. "
        "headrace_slo_misses_total says which objective; the dashboard's latency row says where the time went.",
        at=burn.long,
        interval=f"{interval}m",
        labels={"model_name": "m"},
        fires=((series[0], f"0+1000x{steps}"), (series[1], f"0+{most:.6f}x{steps}")),
        quiet=((series[0], f"0+1000x{steps}"), (series[1], f"0+{few:.6f}x{steps}")),
    )


def _alert_rule(alert: Alert) -> Data:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.hold,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.description},
    }


def _literal(name: str) -> str:
    """Spell a model's name as a regular expression."""
    return "".join(char if char.isalnum() or char in "-_/:" else f"\\{char}" for char in name)


def _quoted(text: str) -> str:
    """Spell a PromQL string: its escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)
