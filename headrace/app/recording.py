"""Where a model's decisions are written, if anywhere, and the scheduler that goes with it.

Owns the choice between the plain scheduler and the one that records. Called by `loading`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import headrace
from headrace.core.settings import Settings
from headrace.engine.decision_log import DecisionLog
from headrace.engine.recording import RecordingScheduler
from headrace.kv import BlockPool
from headrace.kv.tiers import TierHierarchy
from headrace.sched import Scheduler, SchedulerLimits

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Recording:
    """The file of one model, None for no log, and the bytes that it and older ones may take."""

    path: Path | None
    limit_bytes: int

    @classmethod
    def of(cls, settings: Settings, model: str) -> Recording:
        """Return where a model's log goes; where several models are served, its name is part of the file's."""
        engine = settings.engine
        if engine.decision_log is None:
            return cls(None, 0)
        path = Path(engine.decision_log).expanduser()
        if len(settings.models) > 1:
            path = path.with_name(f"{path.stem}-{re.sub(r'[^A-Za-z0-9._-]', '-', model)}{path.suffix}")
        return cls(path, engine.decision_log_mib * _MIB)

    def numbered(self, number: int) -> Recording:
        """Return the log of the same model after `number` swaps of weights: a file of its own."""
        path = None if self.path is None else self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")
        return Recording(path, self.limit_bytes)

    def scheduler(
        self, num_blocks: int, block_size: int, limits: SchedulerLimits, tiers: TierHierarchy | None
    ) -> Scheduler:
        """Make a model's scheduler. Raises ConfigError if its log cannot be written."""
        pool = BlockPool(num_blocks)
        if self.path is None:
            return Scheduler(pool, block_size, limits, tiers)
        log = DecisionLog(
            self.path,
            self.limit_bytes,
            num_blocks=num_blocks,
            block_size=block_size,
            limits=limits,
            tiers=None if tiers is None else tiers.shape,
            version=headrace.__version__,
        )
        return RecordingScheduler(pool, block_size, limits, log.note, tiers)
