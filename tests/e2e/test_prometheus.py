"""A real Prometheus scrapes a real server, loads the generated rules and answers every panel of the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.cli.entry import main
from tests.e2e.conftest import SMALL, Server, running
from tests.prometheus_server import PrometheusServer, has_prometheus, running_prometheus

pytestmark = pytest.mark.skipif(not has_prometheus(), reason="no prometheus; on Debian: apt-get install prometheus")


@pytest.fixture(scope="module")
def watched(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, PrometheusServer]]:
    """A server with a tenant, a limit that it exceeds, a budget and an upstream that is down; and its Prometheus."""
    directory = tmp_path_factory.mktemp("watched")
    asker, monitor = accounts(f"sqlite:///{directory / 'accounts.db'}")
    config = directory / "headrace.toml"
    config.write_text(
        f"""
        models = ["file:{tiny_path}"]
        database = "sqlite:///{directory / "accounts.db"}"
        [slo]
        ttft_ms = 60000
        tpot_ms = 60000
        e2e_ms = 61234
        by_model = {{ nobody = "ttft=1" }}
        [gateway]
        usd_per_hour = "3600"
        prices = {{ tiny = "1000/1000", gone = "1/1" }}
        [failover]
        breaker_min_calls = 1
        breaker_open_s = 300
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
        (files / "headrace.key").write_text(monitor)
        with running_prometheus(prometheus) as scraper:
            scraper.wait_for(lambda: scraper.query("headrace_engine_up == 1"))
            for model in ("tiny", "gone"):
                ask(server, asker, model)
            assert ask(server, asker, "tiny") == 429
            scraper.wait_for(lambda: len(scraper.query("headrace_slo_requests_total == 1")) == 2)
            scraper.wait_for(lambda: scraper.query("headrace:objective_met_ratio:rate5m > 0"))
            scraper.wait_for(lambda: scraper.query("rate(headrace_admission_refusals_total[1m]) >= 0"))
            yield server, scraper
        assert server.stop() == 0, server.log


def accounts(database: str) -> tuple[str, str]:
    """Make a tenant with a budget, who may ask tiny once an hour; return its key and one that may read metrics."""
    keys = []
    for command in (
        ("tenants", "create", "acme"),
        ("budgets", "set", "tenant:acme", "1000"),
        ("limits", "set", "tenant:acme", "requests", "1", "--per", "hour", "--model", "tiny"),
        ("keys", "create", "acme"),
        ("keys", "create", "acme", "--role", "monitor"),
    ):
        with redirect_stdout(StringIO()) as written:
            assert main([*command, "--database", database]) == 0
        keys += re.findall(r"hr-\S+", written.getvalue())
    asker, monitor = keys
    return asker, monitor


def ask(server: Server, key: str, model: str) -> int:
    body = {"model": model, "prompt": "one", "max_tokens": 4, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(
        f"{server.url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False
    ).status_code


def panels(files: Path) -> dict[str, dict[str, str]]:
    """Title → legend → expression, as Grafana would ask them."""
    document = json.loads((files / "headrace-overview.json").read_text())
    return {
        panel["title"]: {
            target["legendFormat"]: target["expr"]
            .replace("$__rate_interval", "1m")
            .replace("$__range", "1h")
            .replace("$model", ".*")
            for target in panel["targets"]
        }
        for panel in document["panels"]
        if panel["type"] != "row"
    }


def test_every_panel_is_answered(watched: tuple[Server, PrometheusServer], tmp_path: Path) -> None:
    _, prometheus = watched
    assert main(["dashboards", "--out", str(tmp_path)]) == 0
    empty = {
        (title, legend)
        for title, queries in panels(tmp_path).items()
        for legend, expr in queries.items()
        if not prometheus.query(expr)  # an expression that Prometheus cannot answer fails in `query`
    }
    assert empty == {
        ("Refused", "door: {{code}}"),  # nobody was turned away before a model was asked for
        ("Health", "{{model_name}} stuck requests"),
        ("Prefix cache", "{{tier}} blocks"),  # no tiers are configured
        ("Failover", "{{upstream}} dead keys"),
        ("Upstream load", "{{upstream}} first token"),  # the upstream never answered
    }


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
