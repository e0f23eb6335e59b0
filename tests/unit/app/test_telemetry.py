"""Tracing is there where it is asked for, and what it lacks is said with the way to get it."""

from __future__ import annotations

import sys

import pytest

from headrace.app.telemetry import open_tracer
from headrace.core.errors import ConfigError
from headrace.core.telemetry_settings import TelemetrySettings
from headrace.testing import VirtualClock


def test_without_an_endpoint_there_is_no_tracer() -> None:
    assert open_tracer(TelemetrySettings(), VirtualClock()) is None


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "headrace.obs.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"opentelemetry is not installed; pip install 'headrace\[otel\]'"):
        open_tracer(TelemetrySettings(otlp_endpoint="http://127.0.0.1:9"), VirtualClock())
