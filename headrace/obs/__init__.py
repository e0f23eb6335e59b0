"""Metrics, traces, logs and the start-up timeline: what the server says about itself, never about anyone's content."""

from headrace.obs.door import DoorMetrics
from headrace.obs.log_lines import PlainRecord
from headrace.obs.logs import LogTag, configure_logging, tag_logs, untag_logs
from headrace.obs.metrics import Metrics, ModelMetrics
from headrace.obs.timeline import Timeline

__all__ = [
    "DoorMetrics",
    "LogTag",
    "Metrics",
    "ModelMetrics",
    "PlainRecord",
    "Timeline",
    "configure_logging",
    "tag_logs",
    "untag_logs",
]
