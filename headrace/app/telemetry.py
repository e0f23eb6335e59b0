"""Tracing put into the server: OpenTelemetry is imported where the settings ask for it, and nowhere else.

Owns nothing; the tracer's life is the server's.
"""

from __future__ import annotations

import headrace
from headrace.core.errors import ConfigError
from headrace.core.protocols import Clock
from headrace.core.telemetry_settings import TelemetrySettings
from headrace.core.tracing import Tracer


def open_tracer(settings: TelemetrySettings, clock: Clock) -> Tracer | None:
    """Return what begins traces; None where there is no endpoint. Raises ConfigError if the extra is missing."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from headrace.obs.otel import OtelTracer
    except ImportError as err:
        raise ConfigError(
            f"telemetry.otlp_endpoint is set, but {err.name} is not installed; pip install 'headrace[otel]'"
        ) from err
    return OtelTracer(settings.otlp_endpoint, settings.sample_ratio, clock, headrace.__version__)
