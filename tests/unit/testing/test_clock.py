from __future__ import annotations

import pytest

from headrace.testing import VirtualClock


def test_time_moves_when_told_to_and_never_back() -> None:
    clock = VirtualClock(5.0)
    clock.advance(1.5)
    assert clock.now() == 6.5
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1.0)
