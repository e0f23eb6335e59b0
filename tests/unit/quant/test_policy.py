"""Which packed format stored weights get."""

from __future__ import annotations

import pytest

from headrace.quant.formats import Format
from headrace.quant.policy import BF16, INT4, INT8, PackedFormat, choose


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([Format.Q4_0], PackedFormat("I4G", 32)),
        ([Format.Q4_1, Format.Q4_K], PackedFormat("I4G", 32, True)),
        ([Format.Q4_0, Format.Q4_1], PackedFormat("I4G", 32, True)),
        ([Format.Q8_0, Format.Q5_0], PackedFormat("I8G", 32)),
        ([Format.Q5_1], PackedFormat("I8G", 32, True)),
        ([Format.Q4_K, Format.Q6_K], PackedFormat("I8G", 32)),
        ([Format.F32, Format.BF16], BF16),
        ([Format.Q8_0, Format.F16], BF16),
    ],
)
def test_auto_keeps_what_the_file_holds(stored: list[Format], expected: PackedFormat) -> None:
    assert choose(stored, "auto") == expected


def test_every_stored_format_has_a_packed_one() -> None:
    for stored in Format:
        assert choose([stored], "auto").name in ("BF16", "I8G", "I4G")


def test_a_format_that_was_asked_for_goes_before_what_is_stored() -> None:
    assert [choose([Format.Q4_0], asked) for asked in ("bf16", "int8", "int4")] == [BF16, INT8, INT4]
