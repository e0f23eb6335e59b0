"""Load generation, one vocabulary of metrics, and the comparison with other engines."""

from headrace.bench.metrics import LoadReport, RequestLog, summarize
from headrace.bench.offline import OfflineReport, OfflineShape, run_offline

__all__ = ["LoadReport", "OfflineReport", "OfflineShape", "RequestLog", "run_offline", "summarize"]
