"""What stands before a model: who may ask, how often, for how much money, and where the answer comes from."""

from headrace.gateway.gateway import Gateway

__all__ = ["Gateway"]
