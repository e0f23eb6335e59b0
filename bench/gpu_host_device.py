"""What takes the place of a device in bench/gpu_host.py: launches that end at the driver, and predicted times."""

from __future__ import annotations

import pytest
import triton
from gpu_compile import CompileOnly
from gpu_models import llama

from headrace.executor.cuda import forms
from headrace.model.build import build_program
from headrace.ops.cuda import launching, long_products

BYTES_PER_S, FLOPS = 4.3e12, 750e12
LAYERS = {"8b": 32, "1b": 16}
LEFT_OUT = {"launches_a_layer": 7, "us_a_launch": 3.0, "products_a_layer": 4, "us_a_product": 6.0}  # assumed


def launch_nowhere(patch: pytest.MonkeyPatch) -> None:
    """Have kernels compiled for a GPU and launched up to the driver's call; the vendor's products are left out."""
    triton.runtime.driver.set_active(CompileOnly(90))
    patch.setattr(launching, "_is_replaced", True)
    patch.setattr(long_products, "_multiply", lambda x, weight, out: None)


def predicted_us(size: str, rows: int, context: int) -> float:
    """Return the device's time for a step of a model in bf16, from the bytes that it has to read."""
    program = build_program(llama(size))
    embed = program.vocab_size * program.hidden_size if size == "8b" else 0
    weights = 0
    for spec in program.weights:
        count = 1
        for length in spec.shape:
            count *= length
        weights += count
    kv = forms.kv_block_bytes(program.cache_layers, block_size=1)
    return (2 * (weights - embed) + kv * context * rows) / BYTES_PER_S * 1e6


def predicted_mixed_us(size: str, rows: int, chunk: int, context: int) -> float:
    """Return the device's time for a step that holds a chunk: products, and the KV that its rows read."""
    program = build_program(llama(size))
    weights = sum(spec.shape[0] * spec.shape[1] for spec in program.weights if len(spec.shape) == 2)
    table = program.vocab_size * program.hidden_size
    layers = weights - table * (2 if size == "8b" else 1)
    flops = 2 * (layers * (rows + chunk) + table * (rows + 1))
    kv = forms.kv_block_bytes(program.cache_layers, block_size=1)
    products = max(flops / FLOPS, 2 * (layers + table) / BYTES_PER_S)
    return (products + kv * (context * rows + 2 * chunk) / BYTES_PER_S) * 1e6
