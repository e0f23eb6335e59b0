"""Fakes that ship with the package: a clock, a tokenizer, a model and an upstream without weights."""

from headrace.testing.byte_tokenizer import ByteTokenizer
from headrace.testing.clock import VirtualClock
from headrace.testing.echo import EchoUpstream
from headrace.testing.fixed_cost import FixedCost
from headrace.testing.uniform_model import UniformModel, next_token, token_logprob

__all__ = ["ByteTokenizer", "EchoUpstream", "FixedCost", "UniformModel", "VirtualClock", "next_token", "token_logprob"]
