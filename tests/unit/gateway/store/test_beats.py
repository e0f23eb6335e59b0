"""Writers that gather write at the same moments, and none waits longer than one beat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.store.beats import BEAT_S, until_beat


@given(st.floats(0, 10**6), st.floats(0, BEAT_S / 3))
def test_whoever_begins_to_wait_within_one_beat_wakes_at_its_end(start_s: float, later_s: float) -> None:
    beat = start_s + until_beat(start_s) - BEAT_S  # the beginning of one
    wakes = [now_s + until_beat(now_s) for now_s in (beat + BEAT_S / 3, beat + BEAT_S / 3 + later_s)]
    assert wakes[0] == pytest.approx(wakes[1], abs=1e-6)
    assert 0 < until_beat(start_s) <= BEAT_S


def test_without_a_beat_nobody_waits() -> None:
    assert until_beat(12.3, 0.0) == 0.0
