"""`DecodeSteps`: steps in which every row has one token, as one copy to the device and one recorded graph.

Owns: a frame for each bucket of batch sizes: what its graph reads, at addresses that never move. Called by
`executor.cuda.executor`.
Invariant: a graph holds all that a step of plain rows is: tokens that the step before has drawn, changes of the block
tables, the model, the draw; there are two, since greedy rows are drawn in one pass. What only some steps have goes
beside it: more changes than a frame has room for in front; penalties, biases and log probabilities behind, for which
the lines are drawn from once more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.step import Step
from headrace.executor.cuda.answers import Draw
from headrace.executor.cuda.block_tables import BlockTables
from headrace.executor.cuda.device_batch import BatchShape, pack_single
from headrace.executor.cuda.feed import Feed
from headrace.executor.cuda.graphs import Graphs, Outputs
from headrace.executor.cuda.model import DeviceBatch, DeviceModel
from headrace.executor.cuda.sampling_lines import SamplingLines, device_lines
from headrace.executor.cuda.staging import Fields, Frame, Staging
from headrace.ops.cuda import sampling as ops
from headrace.ops.cuda.sampling import Lines, try_draw
from headrace.ops.cuda.step_inputs import begin_step

_MORE_CHANGES = 32  # of block tables, than rows: a sequence that comes back brings all its blocks


class _Inputs(NamedTuple):
    """What the graph of one bucket reads."""

    frame: Frame
    batch: DeviceBatch
    lines: Lines


class DecodeSteps:
    """Runs steps of single tokens. For one thread."""

    def __init__(
        self,
        model: DeviceModel,
        graphs: Graphs,
        staging: Staging,
        tables: BlockTables,
        feed: Feed,
        sampling: SamplingLines,
        shape: BatchShape,
        *,
        has_reach: bool,
    ) -> None:
        """Make the parts meet. `has_reach`: the kernels ask what each token sees, in every step."""
        self._model = model
        self._graphs = graphs
        self._staging = staging
        self._tables = tables
        self._feed = feed
        self._sampling = sampling
        self._shape = shape
        self._has_reach = has_reach
        self._inputs: dict[int, _Inputs] = {}

    def run(
        self, step: Step, bucket: int, lines: NDArray[np.int32], changes: NDArray[np.int32]
    ) -> tuple[Draw, dict[int, int]]:
        """Queue a step; return what it draws, and its rows with a token outside the vocabulary.

        lines, changes  of the rows, as the tables have told them
        """
        rows, count = step.rows, len(step.rows)
        inputs = self._inputs.get(bucket) or self._open(bucket)
        here = self._staging.open(inputs.frame)
        unknown = pack_single(rows, lines, self._tables, self._shape, here)
        self._feed.fill(rows, here["tokens"], here["ahead"], slice(count))
        host = self._sampling.describe(rows, lines, here["floats"].view(np.float64), here["ints"])
        here["floats"][count:] = 0  # greedy, which costs least
        num_changes, room = changes.shape[1], here["changes"].shape[1]
        here["changes"][0] = -1
        more: list[NDArray[np.generic]] = [] if host.is_plain else [host.entries, host.biases]
        if num_changes <= room:
            here["changes"][:, :num_changes] = changes
        else:
            more.append(changes)
        sent = self._staging.close(inputs.frame, more)
        if num_changes > room:
            self._tables.apply(sent[-1])
        # Of lines that are drawn from once more, what the graph says is not read: the quick one will do.
        is_greedy = host.is_greedy or not host.is_plain
        logits, out = self._graphs.run(
            (bucket, is_greedy), lambda: self._work(inputs, is_greedy=is_greedy), is_dry_run=step.is_dry_run
        )
        if not host.is_plain:
            ready, adjustments = device_lines(host, [inputs.lines.floats, inputs.lines.ints, *sent[:2]])
            into = None if host.num_top is not None else self._feed.drawn[:bucket]
            out = try_draw(logits, ready, adjustments, num_top=host.num_top, is_greedy=host.is_greedy, out=into)
        needed = out is None or bool(host.by_numpy)
        return Draw(out=out, logits=logits if needed else None, lines=host, rows=rows), unknown

    def _work(self, inputs: _Inputs, *, is_greedy: bool) -> Outputs:
        there, bucket = inputs.frame.there, len(inputs.batch.tokens)
        begin_step(
            there["tokens"],
            there["ahead"],
            self._feed.drawn,
            self._tables.device_table,
            there["changes"],
            vocab_size=self._shape.vocab_size,
        )
        logits = self._model.logits(self._model.run(inputs.batch))
        out = self._feed.drawn[:bucket]
        return logits, try_draw(logits, inputs.lines, None, num_top=None, is_greedy=is_greedy, out=out)

    def _open(self, bucket: int) -> _Inputs:
        """Make the frame of a bucket, with every line greedy."""
        frame = self._staging.frame(frame_fields(bucket, has_reach=self._has_reach))
        for arrays in frame.here:
            arrays["floats"][:] = 0
            arrays["ints"][:] = 0
            arrays["ints"][:, ops.TARGET] = -1
        there = frame.there
        batch = DeviceBatch(
            tokens=there["tokens"],
            positions=there["positions"],
            slots=there["slots"],
            tables=self._tables.device_table,
            short=there["short"],
            long={},
            reach=there.get("reach"),
        )
        inputs = self._inputs[bucket] = _Inputs(
            frame, batch, Lines(floats=there["floats"].view(torch.float64), ints=there["ints"])
        )
        return inputs


def frame_fields(bucket: int, *, has_reach: bool) -> Fields:
    """Return the arrays that a graph for `bucket` rows reads."""
    fields: dict[str, tuple[int, ...]] = {
        "tokens": (bucket,),
        "positions": (bucket,),
        "slots": (bucket,),
        "short": (3, bucket),
        "ahead": (bucket,),
        "changes": (2, bucket + _MORE_CHANGES),
        "floats": (bucket, ops.NUM_FLOATS * 2),  # fp64
        "ints": (bucket, ops.NUM_INTS),
    }
    return fields | {"reach": (2, bucket)} if has_reach else fields
