"""The real engine on a virtual clock: recorded arrivals through scheduler and cache, with predicted step times."""

from headrace.sim.executor import PredictedExecutor
from headrace.sim.report import Quantiles, SimReport
from headrace.sim.simulation import SimShape, simulate
from headrace.sim.step_times import StepTimes, known_step_times, read_step_times
from headrace.sim.trace import Arrival, Trace, read_trace

__all__ = [
    "Arrival",
    "PredictedExecutor",
    "Quantiles",
    "SimReport",
    "SimShape",
    "StepTimes",
    "Trace",
    "known_step_times",
    "read_step_times",
    "read_trace",
    "simulate",
]
