"""`EagerSteps`: steps that no graph was recorded for, kernel by kernel.

Owns nothing: long prompts, scores, and what asks for kernels that graphs were not recorded with. Called by
`executor.cuda.executor`.
Invariant: nothing here waits for the device. Behind the model only the tokens go on that somebody asks about, and of
scored positions a bounded number at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.step import Step
from headrace.executor.cuda.answers import Draw, Scores, landing
from headrace.executor.cuda.block_tables import BlockTables
from headrace.executor.cuda.device_batch import HostBatch, WantedTokens
from headrace.executor.cuda.feed import Feed
from headrace.executor.cuda.model import DeviceBatch, DeviceModel
from headrace.executor.cuda.sampling_lines import SamplingLines, arrays, device_lines, empty_lines, scored_lines
from headrace.executor.cuda.staging import Staging
from headrace.ops.cuda.sampling import Lines, try_draw
from headrace.ops.cuda.step_inputs import begin_step

SCORE_ROWS = 64  # scored positions whose logits exist at a time: a whole prompt's would be gigabytes


class EagerSteps:
    """Runs steps of any size that the model has room for. For one thread."""

    def __init__(
        self, model: DeviceModel, staging: Staging, tables: BlockTables, feed: Feed, sampling: SamplingLines
    ) -> None:
        """Make the parts meet."""
        self._model = model
        self._staging = staging
        self._tables = tables
        self._feed = feed
        self._sampling = sampling

    def send(
        self, batch: HostBatch, kept: NDArray[np.int32] | None, more: list[NDArray[np.generic]]
    ) -> tuple[DeviceBatch, list[torch.Tensor]]:
        """Bring a batch to the device in one copy, and more arrays with it, which are returned."""
        own = [batch.tokens, batch.positions, batch.slots, batch.short.lines, *[tiles.lines for tiles in batch.long]]
        optional = [array for array in (batch.reach, kept) if array is not None]
        sent = self._staging.send([*own, *optional, *more])
        tokens, positions, slots, short = sent[:4]
        sizes = [tiles.size for tiles in batch.long]
        few = iter(sent[len(own) :])
        device_batch = DeviceBatch(
            tokens=tokens,
            positions=positions,
            slots=slots,
            tables=self._tables.device_table,
            short=short,
            long=dict(zip(sizes, sent[4 : 4 + len(sizes)], strict=True)),
            reach=None if batch.reach is None else next(few),
            kept=None if kept is None else next(few),
        )
        return device_batch, [*few]

    def run(
        self,
        step: Step,
        batch: HostBatch,
        wanted: WantedTokens,
        lines: NDArray[np.int32],
        changes: NDArray[np.int32],
    ) -> tuple[Draw, torch.Tensor]:
        """Run the model and draw a token for each row that asks for one; return these and the head's input."""
        chosen = [i for i, row in enumerate(step.rows) if row.sampling is not None]
        rows = tuple([step.rows[i] for i in chosen])
        kept = wanted.tokens if len(wanted.tokens) < batch.num_tokens else None
        host = self._sampling.describe(rows, lines[chosen], *empty_lines(len(rows)))
        ahead = np.empty(batch.num_tokens, np.int32)
        self._feed.fill(step.rows, batch.tokens, ahead, batch.row_ends - 1)
        device_batch, sent = self.send(batch, kept, [ahead, changes, wanted.ends, *arrays(host)])
        begin_step(
            device_batch.tokens,
            sent[0],
            self._feed.drawn,
            self._tables.device_table,
            sent[1],
            vocab_size=self._model.vocab_size,
        )
        hidden = self._model.run(device_batch)
        if not rows:
            return Draw(out=None, logits=None, lines=host, rows=()), hidden
        logits = self._model.logits(hidden[sent[2].long()])
        ready, adjustments = device_lines(host, sent[3:])
        into = None if host.num_top is not None else self._feed.drawn[: len(rows)]
        out = try_draw(logits, ready, adjustments, num_top=host.num_top, is_greedy=host.is_greedy, out=into)
        needed = out is None or bool(host.by_numpy)
        return Draw(out=out, logits=logits if needed else None, lines=host, rows=rows), hidden

    def score(self, step: Step, wanted: WantedTokens, hidden: torch.Tensor) -> list[Scores]:
        """Score the known next tokens, a bounded number of positions at a time."""
        if not wanted.scores:
            return []
        num_top = max(row.num_score_top for row in step.rows if row.score)
        every = scored_lines([token for _, token in wanted.scores], num_top=num_top)
        at, *sent = self._staging.send([wanted.score_places, *arrays(every)])
        lines, _ = device_lines(every, sent)
        found: list[Scores] = []
        for first in range(0, len(wanted.scores), SCORE_ROWS):
            part = slice(first, first + SCORE_ROWS)
            logits = self._model.logits(hidden[at[part].long()])
            given = Lines(floats=lines.floats[part], ints=lines.ints[part])
            out = try_draw(logits, given, None, num_top=num_top, is_greedy=True)
            named = wanted.scores[part]
            if out is None:
                found.append(Scores(out=None, logits=landing(logits), num_top=num_top, places=named))
            else:
                found.append(Scores(out=landing(out), logits=None, num_top=num_top, places=named))
        return found
