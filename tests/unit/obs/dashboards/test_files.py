"""What Grafana and Prometheus are given: valid, about metrics that exist, and tested by Prometheus's own tool."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import PROCESS_COLLECTOR

from headrace.cli.entry import main
from headrace.core.settings import ServerSettings, Settings
from headrace.core.slo_settings import SloSettings
from headrace.obs import Metrics
from headrace.obs.dashboards import monitoring_files
from headrace.obs.dashboards.block_yaml import to_yaml
from headrace.obs.dashboards.rules import BURNS
from tests.prometheus_server import has_prometheus

OBJECTIVES = SloSettings(
    ttft_ms=217,
    tpot_ms=33.3,
    by_model={"org/patient.1": "ttft=5000 tpot=-", "same": "ttft=217", "late": "e2e=9000", 'a "b" \\ c': "e2e=8000"},
)
needs_prometheus = pytest.mark.skipif(not has_prometheus(), reason="no promtool; on Debian: apt-get install prometheus")


def known_names() -> set[str]:
    """Every series that a scrape can have."""
    names = {"up"}
    for family in [*Metrics().collect(), *PROCESS_COLLECTOR.collect()]:
        match family.type:
            case "counter":
                names.add(f"{family.name}_total")
            case "histogram":
                names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
            case _:
                names.add(family.name)
    return names


def series_in(expr: str) -> set[str]:
    """The names in an expression: words that are neither labels, functions nor in quotes."""
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\b(?:by|ignoring|on) \([^)]*\)", "", bare)
    return set(re.findall(r"\b(?:vllm:|headrace[_:]|process_)[\w:]+|\bup\b", bare))


def rules_of(settings: Settings) -> list[dict[str, Any]]:
    document = yaml.safe_load(monitoring_files(settings)["headrace-rules.yml"])
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found = json.loads(monitoring_files(Settings())["headrace-overview.json"])
    assert isinstance(found, dict)
    return found


def test_every_name_in_dashboards_and_rules_is_a_metric_or_recorded() -> None:
    rules = rules_of(Settings(slo=OBJECTIVES))
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for rule in rules for name in series_in(rule["expr"])}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            in_panel = series_in(target["expr"])
            assert in_panel, target["expr"]
            used |= in_panel
    assert len(used) > 50
    assert used - known_names() - recorded == set()


def test_every_line_of_a_panel_has_the_unit_of_what_it_shows() -> None:
    """Counters are rates, never totals since a start; seconds, bytes and tokens a second say so."""
    for panel in dashboard()["panels"]:
        defaults = panel.get("fieldConfig", {"defaults": {}, "overrides": []})
        own = {each["matcher"]["options"]: each["properties"][0]["value"] for each in defaults["overrides"]}
        for target in panel.get("targets", ()):
            expr, unit = target["expr"], own.get(target["refId"], defaults["defaults"]["unit"])
            for counter in re.findall(r"[\w:]+_total\b", expr):
                assert re.search(rf"(rate|increase)\({counter}", expr), expr
            if re.search(r"_quantile.*_seconds_bucket|^(min|max)?\(?\w+_seconds\b", expr):
                assert unit == "s", expr
            if re.search(r"^\w+_bytes\b", expr):
                assert unit == "bytes", expr
            if re.search(r"rate\(\S*_tokens(_cached)?_total", expr) and "/" not in expr:
                assert unit == "suffix: tok/s", expr


def test_panels_lie_beside_one_another() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 25
    cells: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells
        cells |= covered


def test_shares_within_objectives_are_read_from_edges_of_each_models_own_histograms() -> None:
    expr = {
        rule["labels"]["objective"]: rule["expr"]
        for rule in rules_of(Settings(slo=OBJECTIVES))
        if rule.get("record") == "headrace:objective_met_ratio:rate5m"
    }
    assert r'bucket{model_name!~"org/patient\\.1|late|a\\ \\\"b\\\"\\ \\\\\\ c", le="0.217"}' in expr["ttft"]
    assert 'bucket{model_name="org/patient.1", le="5.0"}' in expr["ttft"]
    assert 'model_name="org/patient.1"' not in expr["tpot"]
    assert expr["e2e"].count("bucket") == 2
    for name, model in itertools.product(("org/patient.1", "late", "same"), ("ttft", "tpot", "e2e")):
        observer = Metrics(OBJECTIVES).observer(name)
        for edge in re.findall(rf'model_name="{re.escape(name)}", le="([^"]+)"', expr[model]):
            assert edge in [bound for bound, _ in getattr(observer, model).buckets()]


def test_where_keys_are_needed_prometheus_is_told_to_bring_one() -> None:
    files = monitoring_files(Settings(server=ServerSettings(host="0.0.0.0", port=9000, api_key="secret")))
    (job,) = yaml.safe_load(files["prometheus.yml"])["scrape_configs"]
    assert job["authorization"] == {"credentials_file": "headrace.key"}
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:9000"]
    assert "secret" not in "".join(files.values())


@pytest.mark.parametrize(
    "data",
    [
        {"a": {"b": [1, {"c": 'x: "y" # z', "d": []}, [2, 3]], "e": {}}, "f": None, "g": "é\n- h", "i": True},
        ["no", "0x1", "1_000", "~", "2026-01-01", "\\d{2}", ""],
    ],
)
def test_block_yaml_is_read_back_as_it_was(data: Any) -> None:
    assert yaml.safe_load(to_yaml(data, "a comment\nof two lines")) == data


def promtool(directory: Path, *args: str) -> None:
    done = subprocess.run(["promtool", *args], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
@pytest.mark.parametrize(("target", "tested"), [(0.5, ["slow-"]), (0.9995, ["", "slow-"])])
def test_prometheus_accepts_the_rules_whatever_the_objectives(target: float, tested: list[str], tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    own = (
        'by_model = { "org/patient.1" = "ttft=5000", \'a "b" \\\\ c\' = "e2e=9", x = "tpot=-" }\nttft_ms = 217\n'
        if target > 0.9
        else ""
    )
    config.write_text(f"[slo]\ntarget = {target}\n{own}")
    assert main(["dashboards", "--config", str(config), "--out", str(tmp_path / "out")]) == 0
    promtool(tmp_path / "out", "check", "rules", "headrace-rules.yml")
    promtool(tmp_path / "out", "check", "config", "prometheus.yml")
    promtool(tmp_path / "out", "test", "rules", *(f"headrace-{kind}rules-test.yml" for kind in tested))


def test_every_alert_is_tested_to_fire_and_to_keep_quiet() -> None:
    files = monitoring_files(Settings())
    tests = [
        test
        for name in ("headrace-rules-test.yml", "headrace-slow-rules-test.yml")
        for test in yaml.safe_load(files[name])["tests"]
    ]
    alerts = {rule["alert"] for rule in rules_of(Settings()) if "alert" in rule}
    assert len(alerts) > len(BURNS)
    for does_fire in (True, False):
        checks = [check for test in tests for check in test["alert_rule_test"]]
        assert {check["alertname"] for check in checks if bool(check["exp_alerts"]) is does_fire} == alerts


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["dashboards", "--out", str(tmp_path / "file" / "below")]) == 2
    assert f"cannot write to {tmp_path / 'file' / 'below'}" in capsys.readouterr().err
