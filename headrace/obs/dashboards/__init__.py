"""Grafana dashboards and Prometheus rules, generated from the configuration."""

from headrace.obs.dashboards.files import monitoring_files

__all__ = ["monitoring_files"]
