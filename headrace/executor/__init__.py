"""Carry out Steps: pack them into batches, run the Program on a backend, keep the KV bytes."""

from headrace.executor.batch import Batch, pack
from headrace.executor.kv_bytes import block_bytes
from headrace.executor.pending import Deferred
from headrace.executor.reference import ReferenceExecutor

__all__ = ["Batch", "Deferred", "ReferenceExecutor", "block_bytes", "pack"]
