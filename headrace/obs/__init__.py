"""Metrics, logs and the start-up timeline: what the server says about itself, never about anyone's content."""

from headrace.obs.door import DoorMetrics
from headrace.obs.logs import configure_logging
from headrace.obs.metrics import Metrics, ModelMetrics
from headrace.obs.timeline import Timeline

__all__ = ["DoorMetrics", "Metrics", "ModelMetrics", "Timeline", "configure_logging"]
