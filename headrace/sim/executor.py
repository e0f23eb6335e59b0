"""An executor that computes nothing: a step takes the time that is predicted for it, on a virtual clock.

Owns the virtual time while a simulation runs: only here, and between requests in `sim.simulation`, does it move.
Implements `core.protocols.Executor`. Every sampled token is 0; where answers end is told by their length.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.step import Sample, ScoredPosition, Step, StepResult
from headrace.sim.step_times import StepTimes
from headrace.testing import VirtualClock

_TOKEN = Sample(0)


class PredictedExecutor:
    """Moves the clock by the predicted time of each step; `on_time` is called after each move, on the engine thread."""

    def __init__(
        self, num_blocks: int, block_size: int, times: StepTimes, clock: VirtualClock, on_time: Callable[[float], None]
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.busy_s = 0.0
        self._times = times
        self._clock = clock
        self._on_time = on_time

    def launch(self, step: Step) -> _PredictedStep:
        """Take a step; it is over when its result is asked for."""
        return _PredictedStep(self, step)

    def shutdown(self) -> None:
        """Nothing to free."""

    def run(self, step: Step) -> StepResult:
        """Let the time of a step pass. Warm-up takes none."""
        elapsed_s = 0.0
        if not step.is_dry_run:
            elapsed_s = self._times.predict(step)
            self.busy_s += elapsed_s
            self._clock.advance(elapsed_s)
            self._on_time(self._clock.now())
        samples = tuple(None if row.sampling is None else _TOKEN for row in step.rows)
        scored = tuple(tuple(ScoredPosition(token_id, 0.0) for _, token_id in row.score) for row in step.rows)
        return StepResult(step.step_id, samples, scored if any(scored) else (), {}, elapsed_s)


class _PredictedStep:
    """A step that has been launched."""

    def __init__(self, executor: PredictedExecutor, step: Step) -> None:
        self._executor = executor
        self._step = step

    def result(self) -> StepResult:
        """Let the step's time pass; asked for once."""
        return self._executor.run(self._step)
