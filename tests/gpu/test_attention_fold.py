"""How int8 becomes halves in a GPU's registers: the instructions, followed one by one for every number."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.ops.cuda import attention_fold


def number(operand: str, registers: dict[str, int]) -> int:
    return registers[operand] if operand in registers else int(operand, 0)


def halves(word: int, *, is_bf16: bool) -> np.ndarray:
    pair = np.array([word & 0xFFFF, word >> 16], np.uint16)
    return (pair.astype(np.uint32) << 16).view(np.float32) if is_bf16 else pair.view(np.float16).astype(np.float32)


def bits(values: np.ndarray, *, is_bf16: bool) -> int:
    if not is_bf16:
        pair = values.astype(np.float16).view(np.uint16)
    else:
        wide = values.astype(np.float32).view(np.uint32)
        assert not (wide & 0xFFFF).any()  # what is rounded would not be exact
        pair = (wide >> 16).astype(np.uint16)
    return int(pair[0]) | int(pair[1]) << 16


def run(code: str, word: int, *, is_bf16: bool) -> np.ndarray:
    """Follow the instructions; return the four numbers of $0 and $1."""
    registers = {"$2": word}
    for line in code.strip("{}\n").splitlines():
        name, _, rest = line.rstrip(";").partition(" ")
        to, *given = [part.strip() for part in rest.split(",")]
        if name == ".reg":
            continue
        a, *others = [number(operand, registers) for operand in given]
        if name == "mov.b32":
            registers[to] = a
        elif name == "xor.b32":
            registers[to] = a ^ others[0]
        elif name == "lop3.b32":
            b, c, table = others
            registers[to] = sum(
                (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32)
            )
        elif name == "prmt.b32":
            held = (others[0] << 32 | a).to_bytes(8, "little")
            registers[to] = int.from_bytes(bytes(held[others[1] >> 4 * i & 7] for i in range(4)), "little")
        elif name == "fma.rn.bf16x2":
            x, y, z = (halves(one, is_bf16=True) for one in (a, *others))
            registers[to] = bits(x * y + z, is_bf16=True)
        elif name == "add.rn.f16x2":
            registers[to] = bits(halves(a, is_bf16=False) + halves(others[0], is_bf16=False), is_bf16=False)
        else:
            raise ValueError(f"no such instruction is followed here: {name}")
    return np.concatenate([halves(registers[name], is_bf16=is_bf16) for name in ("$0", "$1")])


@pytest.mark.parametrize("is_bf16", [True, False])
def test_every_int8_becomes_the_same_number_in_halves(is_bf16: bool) -> None:
    code = (attention_fold.INT8_TO_BF16 if is_bf16 else attention_fold.INT8_TO_FP16).value
    for first in range(-128, 128, 4):
        four = np.arange(first, first + 4, dtype=np.int8)
        found = run(code, int.from_bytes(four.tobytes(), "little"), is_bf16=is_bf16)
        assert found.tolist() == four.tolist()
