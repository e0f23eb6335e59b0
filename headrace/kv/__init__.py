"""KV memory as integers: which blocks exist and who holds them."""

from headrace.kv.pool import BlockPool

__all__ = ["BlockPool"]
