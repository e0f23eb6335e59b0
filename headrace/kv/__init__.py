"""KV memory as integers: which blocks exist, who holds them, and which prefixes they keep."""

from headrace.kv.eviction import CostOrder
from headrace.kv.pins import Pins
from headrace.kv.pool import BlockPool
from headrace.kv.radix import Node, RadixCache, pack_tokens

__all__ = ["BlockPool", "CostOrder", "Node", "Pins", "RadixCache", "pack_tokens"]
