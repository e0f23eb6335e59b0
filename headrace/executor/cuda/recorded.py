"""`RecordedSteps`: steps of single tokens, and of these beside parts of prompts, as one copy and one recorded graph.

Owns: a frame for each bucket: what its graph reads, at addresses that never move. Called by `executor.cuda.executor`.
Invariant: a graph holds all that a step of plain rows is: tokens that the step before has drawn, changes of the block
tables, the model, the draw. For single tokens there are two, since greedy rows are drawn in one pass; where prompts
take most of the time one serves any rows. Every row is drawn from, also where nobody asks for its token.
What only some steps have goes beside the graph: more changes than a frame has room for in front; penalties, biases and
log probabilities behind, for which the lines are drawn from once more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.step import Step
from headrace.executor.cuda.answers import Draw
from headrace.executor.cuda.block_tables import BlockTables
from headrace.executor.cuda.buckets import Bucket
from headrace.executor.cuda.device_batch import BatchShape, HostBatch, long_name, pack_single, pad_batch
from headrace.executor.cuda.feed import Feed
from headrace.executor.cuda.graphs import Graphs, Outputs
from headrace.executor.cuda.model import DeviceBatch, DeviceModel
from headrace.executor.cuda.sampling_lines import SamplingLines, device_lines
from headrace.executor.cuda.staging import Fields, Frame, Staging
from headrace.ops.cuda import sampling as ops
from headrace.ops.cuda.sampling import Lines, try_draw
from headrace.ops.cuda.step_inputs import begin_step

_NOBODY = np.array([-1 if at == ops.TARGET else 0 for at in range(ops.NUM_INTS)], np.int32)
_MORE_CHANGES = 32  # of block tables, than rows and chunks bring: a sequence that comes back brings all its blocks


class _Inputs(NamedTuple):
    """What the graph of one bucket reads."""

    frame: Frame
    batch: DeviceBatch
    lines: Lines


class RecordedSteps:
    """Runs steps that fit a bucket. For one thread."""

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
        self._inputs: dict[Bucket, _Inputs] = {}

    def run(
        self,
        step: Step,
        bucket: Bucket,
        batch: HostBatch | None,
        lines: NDArray[np.int32],
        changes: NDArray[np.int32],
    ) -> tuple[Draw, dict[int, int]]:
        """Queue a step; return what it draws, and its rows with a token outside the vocabulary.

        batch           the packed step; None: its rows have one token each
        lines, changes  of the rows, as the tables have told them
        """
        rows, count = step.rows, len(step.rows)
        inputs = self._inputs.get(bucket) or self._open(bucket)
        here = self._staging.open(inputs.frame)
        if batch is None:
            unknown = pack_single(rows, lines, self._tables, self._shape, here)
        else:
            unknown = batch.unknown
            pad_batch(batch, self._shape, here)
        ends = slice(count) if batch is None else batch.row_ends - 1
        self._feed.fill(rows, here["tokens"], here["ahead"], ends)
        here["floats"][count:], here["ints"][count:] = 0, _NOBODY  # greedy, which costs least
        host = self._sampling.describe(rows, lines, here["floats"].view(np.float64), here["ints"])
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
        is_greedy = not bucket.tokens and (host.is_greedy or not host.is_plain)
        logits, out = self._graphs.run(
            (bucket, is_greedy), lambda: self._work(inputs, is_greedy=is_greedy), is_dry_run=step.is_dry_run
        )
        if not host.is_plain:
            ready, adjustments = device_lines(host, [inputs.lines.floats, inputs.lines.ints, *sent[:2]])
            into = None if host.num_top is not None else self._feed.drawn[: bucket.rows]
            out = try_draw(logits, ready, adjustments, num_top=host.num_top, is_greedy=host.is_greedy, out=into)
        needed = out is None or bool(host.by_numpy)
        return Draw(out=out, logits=logits if needed else None, lines=host, rows=rows), unknown

    def _work(self, inputs: _Inputs, *, is_greedy: bool) -> Outputs:
        there = inputs.frame.there
        begin_step(
            there["tokens"],
            there["ahead"],
            self._feed.drawn,
            self._tables.device_table,
            there["changes"],
            vocab_size=self._shape.vocab_size,
        )
        logits = self._model.logits(self._model.run(inputs.batch, is_whole=True))
        out = self._feed.drawn[: len(logits)]
        return logits, try_draw(logits, inputs.lines, None, num_top=None, is_greedy=is_greedy, out=out)

    def _open(self, bucket: Bucket) -> _Inputs:
        """Make the frame of a bucket."""
        fields = frame_fields(bucket, self._shape, has_reach=self._has_reach)
        frame = self._staging.frame(fields)
        there = frame.there
        sizes = self._shape.sizes if bucket.tokens else ()
        batch = DeviceBatch(
            tokens=there["tokens"],
            positions=there["positions"],
            slots=there["slots"],
            tables=self._tables.device_table,
            short=there["short"],
            long={size: there[long_name(size)] for size in sizes},
            reach=there.get("reach"),
            kept=there.get("kept"),
            is_single=not bucket.tokens,
        )
        inputs = self._inputs[bucket] = _Inputs(
            frame, batch, Lines(floats=there["floats"].view(torch.float64), ints=there["ints"])
        )
        return inputs


def frame_fields(bucket: Bucket, shape: BatchShape, *, has_reach: bool) -> Fields:
    """Return the arrays that the graph of a bucket reads."""
    rows, tokens = bucket.rows, bucket.num_tokens
    fields: dict[str, tuple[int, ...]] = {
        "tokens": (tokens,),
        "positions": (tokens,),
        "slots": (tokens,),
        "short": (3, rows if shape.sizes else tokens),
        "ahead": (tokens,),
        "changes": (2, rows + _MORE_CHANGES + bucket.tokens // shape.block_size),
        "floats": (rows, ops.NUM_FLOATS * 2),  # fp64
        "ints": (rows, ops.NUM_INTS),
    }
    if bucket.tokens:
        fields |= {long_name(size): (3, bucket.long_tiles(size)) for size in shape.sizes} | {"kept": (rows,)}
    return fields | {"reach": (2, tokens)} if has_reach else fields
