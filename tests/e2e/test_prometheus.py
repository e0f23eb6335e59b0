"""A real Prometheus scrapes a real server, loads the generated rules and answers every panel of the dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.entry import main
from tests.e2e.conftest import SMALL, Server, running
from tests.prometheus_server import PrometheusServer, has_prometheus, running_prometheus

pytestmark = pytest.mark.skipif(not has_prometheus(), reason="no prometheus; on Debian: apt-get install prometheus")


@pytest.fixture(scope="module")
def watched(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, PrometheusServer]]:
    """A server with accounts, a price and an upstream that is down, and the Prometheus that its files configure."""
    directory = tmp_path_factory.mktemp("watched")
    config = directory / "headrace.toml"
    config.write_text(
        f"""
        models = ["file:{tiny_path}"]
        database = "sqlite:///{directory / "accounts.db"}"
        [slo]
        ttft_ms = 60000
        e2e_ms = 61234
        by_model = {{ nobody = "ttft=1" }}
        [gateway]
        usd_per_hour = "3600"
        prices = {{ tiny = "1000/1000" }}
        [upstreams.down]
        url = "http://127.0.0.1:9"
        models = {{ gone = "gone" }}
        """
    )
    with running("--config", str(config), "--backend", "reference", *SMALL) as server:
        port = server.url.rpartition(":")[2]
        files = directory / "monitoring"
        config.write_text(config.read_text() + f"[server]\nport = {port}\n")
        assert main(["dashboards", "--config", str(config), "--out", str(files)]) == 0
        prometheus = files / "prometheus.yml"
        document = prometheus.read_text().replace('"15s"', '"1s"')
        prometheus.write_text(document)
        (files / "headrace.key").write_text("no keys are configured, so any will do")
        with running_prometheus(prometheus) as scraper:
            scraper.wait_for(lambda: scraper.query("headrace_engine_up == 1"))
            for model in ("tiny", "gone"):
                server.post("/v1/completions", model=model, prompt="one", max_tokens=4)
            scraper.wait_for(lambda: len(scraper.query("headrace_slo_requests_total == 1")) == 2)
            scraper.wait_for(lambda: scraper.query("headrace:objective_met_ratio:rate5m > 0"))
            yield server, scraper
        assert server.stop() == 0, server.log


def panels(files: Path) -> dict[str, list[str]]:
    """Title → expressions, as Grafana would ask them."""
    document = json.loads((files / "headrace-overview.json").read_text())
    return {
        panel["title"]: [
            target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$model", ".*")
            for target in panel["targets"]
        ]
        for panel in document["panels"]
        if panel["type"] != "row"
    }


def test_every_panel_is_answered(watched: tuple[Server, PrometheusServer], tmp_path: Path) -> None:
    _, prometheus = watched
    assert main(["dashboards", "--out", str(tmp_path)]) == 0
    answered = {
        title: [len(prometheus.query(expr)) for expr in exprs] for title, exprs in panels(tmp_path).items()
    }  # an expression that Prometheus cannot answer fails in `query`
    empty = {title for title, numbers in answered.items() if not any(numbers)}
    assert empty <= {"Budgets", "Refused", "Tokens by tenant", "Breakers that are not closed"}, answered


def test_rules_are_evaluated_without_a_fault_and_only_true_alerts_fire(
    watched: tuple[Server, PrometheusServer],
) -> None:
    _, prometheus = watched

    def evaluated() -> list[Any]:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return [] if any(rule["health"] == "unknown" for rule in rules) else rules

    rules = prometheus.wait_for(evaluated)
    assert len(rules) > 40
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert not firing, firing


def test_objectives_of_models_that_are_not_served_are_pointed_out(watched: tuple[Server, PrometheusServer]) -> None:
    assert "slo.by_model names 'nobody', which is not served; it has no effect" in watched[0].log


def test_shares_from_buckets_and_goodput_agree_and_money_follows_time(
    watched: tuple[Server, PrometheusServer],
) -> None:
    _, prometheus = watched

    def value(expr: str) -> float:
        (found,) = prometheus.query(expr)
        return float(found["value"][1])

    assert value('vllm:e2e_request_latency_seconds_bucket{model_name="tiny", le="61.234"}') == 1
    assert value('headrace_slo_requests_total{model_name="tiny"}') == 1
    assert value('headrace_goodput_tokens_total{model_name="tiny"}') == 4
    assert value('headrace_slo_misses_total{model_name="gone", objective="failure"}') == 1
    # a dollar a second: the same number in both
    spent = value("sum(headrace_engine_usd_total) - sum(headrace_engine_time_seconds_total)")
    assert spent == pytest.approx(0.0, abs=1e-6)
    prompt = value('sum(vllm:request_prompt_tokens_sum{model_name="tiny"})')
    assert value('headrace_charged_usd_total{model_name="tiny"}') == pytest.approx((prompt + 4) * 1000 / 1e6)
