"""What serving costs: money as integers, and step time divided over the requests that shared it. Pure functions."""

from headrace.econ.attribution import AttributionPolicy, StepCharges, StepCosts, StepWork, attribute, divide
from headrace.econ.engines import EngineBuild, EngineSpan
from headrace.econ.machines import MachineRate, machine_rate
from headrace.econ.money import NANO_PER_USD, NanoUsd, cost_of_time, parse_usd, show_usd
from headrace.econ.rent import FREE, Owed, RentPolicy, RentTerms, share_rent

__all__ = [
    "FREE",
    "NANO_PER_USD",
    "AttributionPolicy",
    "EngineBuild",
    "EngineSpan",
    "MachineRate",
    "NanoUsd",
    "Owed",
    "RentPolicy",
    "RentTerms",
    "StepCharges",
    "StepCosts",
    "StepWork",
    "attribute",
    "cost_of_time",
    "divide",
    "machine_rate",
    "parse_usd",
    "share_rent",
    "show_usd",
]
