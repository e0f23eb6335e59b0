"""What the vector instructions of `dequantize` make of every stored byte, by the rules of PTX, in numpy.

The interpreter runs no such instructions: it takes conversions that give the same numbers. Here each instruction of the
text itself is carried out on registers of two bf16 numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from headrace.ops.cuda import dequantize


def halves(register: np.ndarray) -> np.ndarray:
    """Return the two bf16 numbers of 32-bit registers, exact in fp64."""
    pair = np.stack((register & 0xFFFF, register >> 16), -1).astype(np.uint32)
    return (pair << 16).view(np.float32).astype(np.float64)


def joined(numbers: np.ndarray) -> np.ndarray:
    """Round to bf16, nearest and ties to even, as torch does from fp64."""
    bits = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy().astype(np.uint16).astype(np.uint32)
    return bits[..., 0] | (bits[..., 1] << 16)


OPS: dict[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "shr.b32": lambda a, by: a >> by,
    "sub.bf16x2": lambda a, b: joined(halves(a) - halves(b)),
    "mul.bf16x2": lambda a, b: joined(halves(a) * halves(b)),
    "fma.rn.bf16x2": lambda a, b, c: joined(halves(a) * halves(b) + halves(c)),
}


def lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> np.ndarray:
    """The table's bit 4a + 2b + c is the result for bits a, b and c."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            terms = [value if row >> place & 1 else ~value for value, place in ((a, 2), (b, 1), (c, 0))]
            result |= terms[0] & terms[1] & terms[2]
    return result


def carried_out(text: str, num_results: int, *given: np.ndarray) -> list[np.ndarray]:
    """Run a text on registers; operands $0 … are the results, the others are given."""
    held: dict[str, np.ndarray] = {f"${num_results + i}": value for i, value in enumerate(given)}
    for line in text.strip().strip("{}").split(";"):
        op, _, rest = line.strip().partition(" ")
        if not op or op == ".reg":
            continue
        target, *names = (name.strip() for name in rest.split(","))
        values = [held[name] if name in held else np.uint32(int(name, 0)) for name in names]
        if op == "lop3.b32":
            a, b, c = np.broadcast_arrays(*values[:3])
            held[target] = lop3(a, b, c, int(values[3]))
        else:
            held[target] = OPS[op](*values)
    return [np.broadcast_to(held[f"${i}"], given[0].shape) for i in range(num_results)]


WORDS = np.arange(1 << 16, dtype=np.uint32)
PAIRS = WORDS | ((WORDS * 40503 % 65536) << 16)  # two different words in each register


def pairs_of(random: np.random.RandomState, count: int) -> np.ndarray:
    return joined(random.standard_normal((count, 2)) * 0.01)


def test_four_bits_come_out_as_they_are_scaled_and_lifted() -> None:
    random = np.random.RandomState(0)
    scales, middles = ([pairs_of(random, len(PAIRS)) for _ in range(4)] for _ in range(2))
    found = carried_out(dequantize._NIBBLES.value, 4, PAIRS, *scales, *middles)
    for place in range(4):
        q = (np.stack((PAIRS >> (4 * place), PAIRS >> (16 + 4 * place)), -1) & 15).astype(np.float64) - 8
        wanted = joined(q * halves(scales[place]) + halves(middles[place]))
        np.testing.assert_array_equal(found[place], wanted)


@pytest.mark.parametrize("is_scaled", [False, True])
def test_every_signed_byte_is_exact(is_scaled: bool) -> None:
    random = np.random.RandomState(1)
    scales = [pairs_of(random, len(PAIRS)) for _ in range(2)] if is_scaled else []
    text = dequantize._SIGNED_SCALED if is_scaled else dequantize._SIGNED
    found = carried_out(text.value, 2, PAIRS, *scales)
    for place in range(2):
        raw = np.stack((PAIRS >> (8 * place), PAIRS >> (16 + 8 * place)), -1)
        q = (raw & 255).astype(np.uint8).astype(np.int8).astype(np.float64)
        wanted = joined(q * halves(scales[place])) if is_scaled else joined(q)
        if not is_scaled:
            np.testing.assert_array_equal(halves(found[place]), q)
        np.testing.assert_array_equal(halves(found[place]), halves(wanted))


def test_the_texts_hold_only_instructions_that_are_carried_out_here() -> None:
    for text in (dequantize._NIBBLES, dequantize._SIGNED, dequantize._SIGNED_SCALED):
        ops = set(re.findall(r"^([a-z0-9.]+) ", text.value, re.MULTILINE)) - {".reg"}
        assert ops <= {*OPS, "lop3.b32"}
