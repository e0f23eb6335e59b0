"""Which packed format stored weights get."""

from __future__ import annotations

import pytest

from headrace.quant.formats import Format
from headrace.quant.policy import BF16, INT4, PackedFormat, choose


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
    assert choose(stored, "auto", 576) == expected


def test_every_stored_format_has_a_packed_one() -> None:
    for stored in Format:
        assert choose([stored], "auto", 256).name in ("BF16", "I8G", "I4G")


def test_a_format_that_was_asked_for_goes_before_what_is_stored() -> None:
    asked = [choose([Format.Q4_0], name, 576) for name in ("bf16", "int8", "int4")]
    assert asked == [BF16, PackedFormat("I8R", 192), INT4]
    long = [choose([Format.Q4_0], name, 576) for name in ("int4-g64", "int4-g128")]
    assert long == [PackedFormat("I4G", 64, True), PackedFormat("I4G", 128, True)]


@pytest.mark.parametrize(("k", "group"), [(2048, 256), (576, 192), (640, 128), (320, 64), (31, 64), (100, 128)])
def test_rotated_groups_are_the_longest_that_need_no_padding_of_their_own(k: int, group: int) -> None:
    assert choose([Format.BF16], "int8", k) == PackedFormat("I8R", group)
