"""What one step may hold: the plan while it grows, and how many tokens may still go into it.

Owns nothing but the plan of the moment. Called by the scheduler.
Rows of one token always fit into the token budget. Prompt chunks stretch the step, and with it the gap between two
tokens of everybody who is decoding: with a target for that gap the chunk is as long as the step model allows, without
one as long as the limits say for so many.
Background sequences may stretch a step of others by `background_share` at most, and have all of it when it is theirs.
"""

from __future__ import annotations

from headrace.core.step import Row
from headrace.sched.limits import SchedulerLimits
from headrace.sched.sequence import Sequence
from headrace.sched.step_model import StepModel, StepShape

_LEAST_CHUNK = 16  # prompts get on, however tight the target


class StepPlan:
    """A step in the making. Written by the scheduler."""

    __slots__ = ("budget", "is_ahead", "members", "rows", "shape")

    def __init__(self, budget: int, *, is_ahead: bool = False) -> None:
        self.budget = budget  # tokens that may still be added
        self.is_ahead = is_ahead  # a step runs: rows may continue what it samples
        self.rows: list[Row] = []
        self.members: list[Sequence] = []
        self.shape = StepShape()


class StepBudget:
    """Divides a step's time between decoding, prompts and background."""

    def __init__(self, limits: SchedulerLimits, model: StepModel) -> None:
        policy = limits.policy
        self._limits = limits
        self._itl_target_s = None if policy.itl_target_ms is None else policy.itl_target_ms / 1e3
        self._background_share = policy.background_share
        self._model = model

    def chunk_room(self, shape: StepShape, budget: int, start: int) -> int:
        """Return how many of `budget` tokens a prompt from position `start` may have in a step of that shape so far."""
        if not shape.num_rows:
            return budget
        if self._itl_target_s is None:
            return min(budget, max(self._limits.prompt_tokens(shape.num_rows) - shape.num_tokens, 0))
        if not self._model.knows_chunks:
            return budget
        # The least chunk is for the whole step, not for each of its prompts.
        room = max(self._model.chunk_within(self._itl_target_s, shape, start), _LEAST_CHUNK - shape.num_tokens)
        return min(room, budget)

    def background_room(self, plan: StepPlan) -> int:
        """Return how many tokens of background sequences may go into a step that has its other rows."""
        if not plan.rows:
            return plan.budget
        model = self._model
        if not model.is_ready:
            return 0
        token_s = max(model.row_s, model.token_s)
        room = int(self._background_share * model.predict(plan.shape) / token_s) if token_s > 0.0 else 1
        return min(room, plan.budget)
