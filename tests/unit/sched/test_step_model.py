from __future__ import annotations

import random

import pytest

from headrace.sched.step_model import StepModel, StepShape

SHARED, ROW, READ, TOKEN, PAIR = 4e-3, 2e-4, 2e-8, 2.5e-4, 2e-9


def seconds(shape: StepShape) -> float:
    return SHARED + ROW * shape.num_rows + READ * shape.num_reads + TOKEN * shape.num_tokens + PAIR * shape.num_pairs


def shapes(count: int, chunk_share: float) -> list[StepShape]:
    rng = random.Random(1)
    made = []
    for _ in range(count):
        rows = rng.randrange(1, 64)
        shape = StepShape(num_rows=rows, num_reads=rows * rng.randrange(100, 2000))
        if rng.random() < chunk_share:
            shape.add(rng.randrange(4000), rng.randrange(2, 512))
        made.append(shape)
    return made


@pytest.fixture
def taught() -> StepModel:
    model, rng = StepModel(), random.Random(2)
    for shape in shapes(400, 0.3):
        model.observe(shape, seconds(shape) * rng.uniform(0.95, 1.05))
    return model


def test_steps_are_predicted_within_the_noise(taught: StepModel) -> None:
    for shape in shapes(50, 0.5):
        assert taught.predict(shape) == pytest.approx(seconds(shape), rel=0.1)
    assert 1.0 < taught.overrun < 1.15


def test_nothing_is_known_before_anything_has_been_seen() -> None:
    model = StepModel()
    assert not model.is_ready
    assert not model.knows_chunks
    assert model.predict(StepShape(num_rows=5)) == 0.0
    model.observe(StepShape(num_rows=5), 0.0)  # a backend that does not measure teaches nothing
    assert not model.is_ready


def chunk(start: int, count: int) -> StepShape:
    shape = StepShape()
    shape.add(start, count)
    return shape


def test_what_recomputing_costs_is_what_the_fit_says_of_prompts(taught: StepModel) -> None:
    assert taught.is_known
    assert taught.recompute_s(100, 50) == pytest.approx(TOKEN * 50 + PAIR * 50 * 125, rel=0.1)


def test_what_recomputing_costs_is_the_mean_of_prompts_until_the_fit_can_tell() -> None:
    model = StepModel()
    assert not model.is_known
    assert model.recompute_s(0, 100) == 100 * model.recompute_s(0, 1) > 0.0
    for _ in range(20):
        model.observe(StepShape(num_rows=2, num_reads=30), 1.0)  # steps that only decode teach nothing of it
    assert model.recompute_s(0, 1) == StepModel().recompute_s(0, 1)
    for elapsed_s in (0.2, 0.1, 0.3):
        model.observe(chunk(0, 100), elapsed_s)
    assert model.is_known
    assert 0.001 < model.recompute_s(500, 1) < 0.003


def test_what_recomputing_costs_is_never_nothing() -> None:
    model = StepModel()
    for _ in range(20):
        for count, elapsed_s in ((100, 0.1), (200, 0.05)):
            model.observe(chunk(0, count), elapsed_s)
    assert model.recompute_s(0, 10) > 0.0


def test_hours_of_decoding_do_not_wipe_out_what_a_chunk_costs(taught: StepModel) -> None:
    for shape in shapes(3000, 0.0):
        taught.observe(shape, seconds(shape))
    shape = StepShape(num_rows=8, num_reads=4000, num_tokens=256, num_pairs=256 * 1000)
    assert taught.predict(shape) == pytest.approx(seconds(shape), rel=0.15)


def test_the_chunk_for_a_time_limit_keeps_it(taught: StepModel) -> None:
    shape = StepShape(num_rows=16, num_reads=16_000)
    count = taught.chunk_within(0.03, shape, 2000)
    shape.add(2000, count)
    assert 0.024 < seconds(shape) < 0.032
    assert taught.chunk_within(1e-3, StepShape(num_rows=60), 0) == 0


def test_a_model_that_slows_down_is_learned_again(taught: StepModel) -> None:
    for shape in shapes(400, 0.3):
        taught.observe(shape, 3 * seconds(shape))
    shape = StepShape(num_rows=32, num_reads=32_000)
    assert taught.predict(shape) == pytest.approx(3 * seconds(shape), rel=0.1)
