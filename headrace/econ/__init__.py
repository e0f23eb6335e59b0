"""What serving costs: money as integers, and step time divided over the requests that shared it. Pure functions."""

from headrace.econ.attribution import AttributionPolicy, StepCharges, StepCosts, StepWork, attribute, divide
from headrace.econ.machines import MachineRate, machine_rate
from headrace.econ.money import NANO_PER_USD, NanoUsd, cost_of_time, parse_usd, show_usd

__all__ = [
    "NANO_PER_USD",
    "AttributionPolicy",
    "MachineRate",
    "NanoUsd",
    "StepCharges",
    "StepCosts",
    "StepWork",
    "attribute",
    "cost_of_time",
    "divide",
    "machine_rate",
    "parse_usd",
    "show_usd",
]
