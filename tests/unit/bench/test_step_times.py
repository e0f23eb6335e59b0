from __future__ import annotations

import msgspec
import pytest

from headrace.bench.step_times import measure_step_times, shapes
from headrace.core.step import Step, StepResult
from headrace.sim import StepTimes
from headrace.testing import UniformModel

TIMES = StepTimes(shared=2e-3, per_row=1e-4, per_read=1e-7, per_token=3e-4, per_pair=1e-8)


class TimedModel(UniformModel):
    """Tells the time that its coefficients give."""

    def run(self, step: Step) -> StepResult:
        return msgspec.structs.replace(super().run(step), elapsed_s=TIMES.predict(step))


def test_measured_steps_give_back_what_they_cost() -> None:
    model = TimedModel(num_blocks=600, block_size=16, vocab_size=5)
    todo = list(shapes(9600, 4096, 64, 512))
    told: list[tuple[int, int]] = []
    found = measure_step_times(model, todo, 5, "made up", lambda done, total: told.append((done, total)))
    for name in ("shared", "per_row", "per_read", "per_token", "per_pair"):
        assert getattr(found, name) == pytest.approx(getattr(TIMES, name), rel=0.02), name
    assert told[-1] == (len(todo), len(todo))


def test_shapes_fit_pool_context_and_step() -> None:
    for shape in shapes(2000, 600, 8, 200):
        assert sum(start + count for start, count in shape.members) <= 2000
        assert all(start + count <= 600 for start, count in shape.members)
        assert shape.num_rows <= 8
        assert sum(count for _, count in shape.members) <= 200
