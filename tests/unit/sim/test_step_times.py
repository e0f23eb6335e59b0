from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.core.errors import ConfigError
from headrace.core.request import Reach, SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.sim import StepTimes, known_step_times, read_step_times
from headrace.sim.step_times import fit, step_terms

TIMES = StepTimes(shared=2e-3, per_row=1e-4, per_read=1e-7, per_token=3e-4, per_pair=1e-8)


def step(*members: tuple[int, int]) -> Step:
    rows = [Row(SeqId(i), start, [0] * count, (0,), SamplingParams()) for i, (start, count) in enumerate(members)]
    return Step(0, tuple(rows))


def test_a_step_costs_the_sum_of_its_parts() -> None:
    assert TIMES.predict(step((100, 1), (50, 1))) == pytest.approx(2e-3 + 2e-4 + 150e-7)
    assert TIMES.predict(step((10, 4))) == pytest.approx(2e-3 + 12e-4 + 48e-8)


def test_a_token_that_sees_a_window_costs_what_it_sees() -> None:
    reach = Reach(window=20, num_sinks=5)
    near, far = (Step(0, (Row(SeqId(0), start, [0], (0,), SamplingParams(), reach=reach),)) for start in (10, 9000))
    assert TIMES.predict(near) == pytest.approx(2e-3 + 1e-4 + 10e-7)
    assert TIMES.predict(far) == pytest.approx(2e-3 + 1e-4 + 25e-7)


def test_a_fit_finds_the_coefficients_that_made_the_steps() -> None:
    shapes = [[(context, 1)] * rows for rows in (1, 4, 16) for context in (0, 100, 4000)]
    shapes += [[(context, chunk)] for chunk in (16, 256) for context in (0, 100, 4000)]
    found = fit([(step_terms(shape), TIMES.predict(step(*shape))) for shape in shapes], "made up")
    for name in ("shared", "per_row", "per_read", "per_token", "per_pair"):
        assert getattr(found, name) == pytest.approx(getattr(TIMES, name), rel=0.02), name
    assert found.source == "made up"


def test_a_fit_never_finds_a_negative_time() -> None:
    found = fit([((rows, 0, 0, 0.0), 1e-3 / rows) for rows in range(1, 20)], "nonsense")
    assert min(found.shared, found.per_row, found.per_read, found.per_token, found.per_pair) >= 0


def test_too_few_steps_are_not_fitted() -> None:
    with pytest.raises(ConfigError, match="has 1 measured steps; at least 8"):
        fit([((1, 0, 0, 0.0), 1e-3)], "log")


def test_shipped_sets_are_sound_and_say_where_they_come_from() -> None:
    for name, times in known_step_times().items():
        times.check()
        assert times.source, name


def test_step_times_are_read_from_a_file_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(msgspec.json.encode(TIMES))
    assert read_step_times(str(path)) == TIMES
    with pytest.raises(ConfigError, match="neither known \\('llama-8b-h100'"):
        read_step_times("llama")
    path.write_text('{"shared": 1}')
    with pytest.raises(ConfigError, match="expected shared, per_row"):
        read_step_times(str(path))
    path.write_text('{"shared": 0, "per_row": 0, "per_token": 1}')
    with pytest.raises(ConfigError, match="must take time"):
        read_step_times(str(path))
