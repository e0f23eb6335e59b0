"""Settings of traces."""

from __future__ import annotations

from typing import Annotated

import msgspec


class TelemetrySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where traces of requests go. Without content.

    otlp_endpoint  collector that takes OTLP over HTTP, such as http://localhost:4318; /v1/traces is added (needs the
                   extra otel); None: no traces
    sample_ratio   share of requests that are traced, where the caller's traceparent has not decided
    """

    otlp_endpoint: str | None = None
    sample_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no URL."""
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"telemetry.otlp_endpoint is '{self.otlp_endpoint}'; write a URL such as http://localhost:4318"
            )
