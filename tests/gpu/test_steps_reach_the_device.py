"""Every step reaches the device as its rows say, whoever joins, ends, is aborted or preempted in between.

The model computes nothing here, and a token is told from what the draw was given: numbers that an executor keeps from
step to step are compared with those of each row, packed one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor.cuda import eager, recorded
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.executor.cuda.model import DeviceBatch
from headrace.kv import BlockPool
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.cuda import launching
from headrace.ops.cuda import sampling as ops
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing.checkpoints import write_checkpoint

BLOCKS, SIZE, ROWS, VOCABULARY = 22, 4, 5, 256
STOP = frozenset({3, 4, 5})
SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, top_p=0.9, seed=11),
    SamplingParams(temperature=1.1, top_k=7, min_p=0.1, seed=2**63 + 5),
    SamplingParams(temperature=0.5, seed=3, min_tokens=4),  # bans end tokens at first
    SamplingParams(temperature=0.5, seed=4, logprobs=2),
    SamplingParams(temperature=0.5, seed=5, repetition_penalty=1.2),
    SamplingParams(temperature=0.5, seed=6, typical_p=0.5),  # numpy draws these
)


def token_of(floats: list[float], ints: list[int]) -> int:
    """Return what is drawn from a line that nothing adjusts: every parameter counts."""
    return hash((*floats, *ints)) % (VOCABULARY - 1)


def expected_token(row: Row, *, back: int = 0) -> int:
    """Return what is drawn for a row, or was `back` tokens before."""
    params = row.sampling or SamplingParams(temperature=0.0)
    num_output = row.num_output - back
    seed = np.array([params.seed % 2**64], np.uint64).view(np.int32).tolist()
    floats = [params.temperature, params.top_p, params.min_p]
    penalties = [params.repetition_penalty, params.frequency_penalty, params.presence_penalty]
    token = token_of(floats + penalties, [*seed, num_output, min(params.top_k, VOCABULARY), -1])
    return token + (params.needs_history or num_output < params.min_tokens)


class Device:
    """Stands in for the model and the draw, and keeps what the last step gave them."""

    def __init__(self, made: CudaExecutor) -> None:
        assert made._model is not None
        self._hidden = torch.zeros((64, 8))
        made._model.run = self.run  # type: ignore[method-assign]
        made._model.logits = lambda hidden: torch.zeros((len(hidden), VOCABULARY))  # type: ignore[method-assign]

    def run(self, batch: DeviceBatch, *, is_whole: bool = False) -> torch.Tensor:
        self.tokens, self.positions, self.slots, self.short = (
            array.clone() for array in (batch.tokens, batch.positions, batch.slots, batch.short)
        )
        self.tables = batch.tables.clone()
        self.kept = None if batch.kept is None else batch.kept.tolist()
        return self._hidden[: len(batch.tokens if batch.kept is None else batch.kept)]

    def draw(
        self, logits: torch.Tensor, lines: ops.Lines, adjustments: ops.Adjustments | None, *, num_top: int | None,
        is_greedy: bool, out: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        if out is None:
            out = torch.zeros((len(logits), ops.OUT_TOP + 2 * (num_top or 0)), dtype=torch.float64)
        out[:, ops.OUT_STATUS] = ops.SAMPLED
        out[:, ops.OUT_TOKEN] = torch.tensor(
            [float(token_of(*both)) for both in zip(lines.floats.tolist(), lines.ints.tolist(), strict=True)]
        )
        if is_greedy:
            out[lines.floats[:, ops.TEMPERATURE] > 0, ops.OUT_TOKEN] = -7
        if adjustments is not None:
            out[adjustments.lines.unique().long(), ops.OUT_TOKEN] += 1
        return out

    def check(self, step: Step) -> None:
        """Compare what the model was given with the rows."""
        at = 0
        for row in step.rows:
            for offset, token in enumerate(row.tokens):
                position = row.start + offset
                if row.is_ahead:
                    token = expected_token(row, back=1)
                assert int(self.tokens[at]) == token
                assert int(self.positions[at]) == position
                assert int(self.slots[at]) == row.blocks[position // SIZE] * SIZE + position % SIZE
                at += 1
        tiles = iter(self.short.T.tolist())
        for row, end in zip(step.rows, np.cumsum([len(row.tokens) for row in step.rows]).tolist(), strict=True):
            for token in range(end - len(row.tokens), end):
                line, first, count = next(tiles)
                assert (first, count) == (token, 1)
                assert self.tables[line, : len(row.blocks)].tolist() == list(row.blocks)
        assert all(count == 0 for _, _, count in tiles)
        if self.kept is not None and len(self.kept) >= len(step.rows):  # all rows go on, in their order
            ends = np.cumsum([len(row.tokens) for row in step.rows]) - 1
            assert self.kept == [*ends.tolist(), *[0] * (len(self.kept) - len(ends))]
        assert not self.tokens[at:].any()
        assert (self.slots[at:] == BLOCKS * SIZE).all()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "llama", "llama", num_hidden_layers=1)


@pytest.fixture(autouse=True)
def _ops_without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(launching, "_failed", {"step inputs": "slow in the interpreter"})
        yield


def opened(path: Path, patch: pytest.MonkeyPatch) -> tuple[CudaExecutor, Device]:
    with open_checkpoint(path) as checkpoint:
        made = CudaExecutor(
            build_program(checkpoint.config), checkpoint, num_blocks=BLOCKS, block_size=SIZE,
            options=DeviceOptions(device="cpu", dtype="float32", max_rows=ROWS, max_step_tokens=24, is_invariant=True),
        )  # fmt: skip
    device = Device(made)
    for module in (eager, recorded):
        patch.setattr(module, "try_draw", device.draw)
    return made, device


ORDERS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 30), st.integers(1, 14), st.sampled_from(range(len(SAMPLINGS)))),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("steps"), st.integers(1, 7)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(orders=ORDERS)
def test_every_step_is_that_of_its_rows(path: Path, orders: list[tuple[object, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made, device = opened(path, patch)
        limits = SchedulerLimits(
            max_num_seqs=ROWS, max_step_tokens=24, max_context=60, max_waiting=99, plans_ahead=True
        )
        scheduler = Scheduler(BlockPool(BLOCKS), SIZE, limits)
        pending: deque = deque()

        def step() -> None:
            while not pending or scheduler.can_overlap:
                if (planned := scheduler.schedule(0.0)) is None:
                    break
                pending.append((planned, made.launch(planned)))
                device.check(planned)
            if pending:
                planned, result = pending.popleft()
                found = result.result()
                assert found.failures == {}
                for row, sample in zip(planned.rows, found.samples, strict=True):
                    assert (sample is None) == (row.sampling is None)
                    if sample is not None and row.sampling.typical_p == 1.0:
                        assert sample.token_id == expected_token(row)
                scheduler.commit(planned, found, 0.0)
                scheduler.check()

        for number, (name, *given) in enumerate([*orders, ("steps", 400)]):
            if name == "submit":
                length, most, which = given
                prompt = [(number + i) % VOCABULARY for i in range(length)]
                scheduler.submit(
                    Sequence(SeqId(number), prompt, SAMPLINGS[which], max_tokens=most, stop_token_ids=STOP)
                )
            elif name == "abort":
                scheduler.abort(SeqId(given[0]))
            else:
                for _ in range(given[0]):
                    if not (scheduler.has_work or pending):
                        break
                    step()
        assert not scheduler.has_work
        made.shutdown()


def test_more_changes_of_tables_than_a_frame_holds_and_steps_in_any_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "_MORE_CHANGES", 1)
    made, device = opened(path, monkeypatch)
    random = np.random.RandomState(0)
    results = []
    for step_id in range(40):
        rows = []
        for seq in random.permutation(12)[: random.randint(1, ROWS + 1)].tolist():
            start = int(random.randint(4, 40))
            blocks = tuple(random.permutation(BLOCKS)[: start // SIZE + 1].tolist())
            params = SAMPLINGS[int(random.randint(3))]
            rows.append(Row(SeqId(seq), start, (step_id,), blocks, params, num_output=int(random.randint(99))))
        planned = Step(step_id, tuple(rows))
        results.append((planned, made.launch(planned)))
        device.check(planned)
    for planned, result in results[::-1]:
        tokens = [sample.token_id for sample in result.result().samples if sample is not None]
        assert tokens == [expected_token(row) for row in planned.rows]
    made.shutdown()


def test_a_step_that_somebody_reads_is_never_run_several_times_to_be_recorded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = opened(path, monkeypatch)
    tried: list[object] = []
    monkeypatch.setattr(made._graphs, "_is_recording", True)
    monkeypatch.setattr(made._graphs, "_try_record", lambda kind, work: tried.append(kind))
    for is_dry_run in (False, True):
        row = Row(SeqId(0), 0, (1,), (0,), SAMPLINGS[1])
        made.launch(Step(0, (row,), is_dry_run=is_dry_run)).result()
        assert tried == ([((1, 0), False)] if is_dry_run else [])
    made.shutdown()


def test_a_part_of_a_prompt_that_nobody_samples_from_fails_beside_no_row(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, device = opened(path, monkeypatch)
    rows = (
        Row(SeqId(0), 3, (7,), (0,), SAMPLINGS[4]),  # log probabilities: answers are read one by one
        Row(SeqId(1), 0, (1, 2, 3), (1,), None),
        Row(SeqId(2), 0, (8, 999, 3, 4), (2,), SAMPLINGS[0]),
    )
    planned = Step(0, rows[:2])
    result = made.launch(planned).result()
    device.check(planned)
    assert result.failures == {}
    assert result.samples[0] is not None
    assert result.samples[1] is None
    failed = made.launch(Step(1, rows)).result()  # a token that the model does not know
    assert set(failed.failures) == {2}
    assert failed.samples[0] is not None
    made.shutdown()
