"""Draw from given logits as the executor does, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.step import Row, Sample, ScoredPosition
from headrace.executor.cuda.answers import Draw, Scores, read_draw, read_line
from headrace.executor.cuda.sampling_lines import (
    HostLines,
    SamplingLines,
    arrays,
    device_lines,
    empty_lines,
    scored_lines,
)
from headrace.ops.cuda.sampling import try_draw


def drawn(device: str, logits: NDArray[np.float32], rows: Sequence[Row]) -> list[Sample | str]:
    places = np.arange(len(rows), dtype=np.int32)
    lines = SamplingLines(len(rows), logits.shape[1]).describe(rows, places, *empty_lines(len(rows)))
    held, out = _drawn(device, logits, lines)
    return read_draw(Draw(out=out, logits=held.cpu(), lines=lines, rows=tuple(rows)))


def scored(
    device: str, logits: NDArray[np.float32], tokens: Sequence[int], num_top: int
) -> list[ScoredPosition | None]:
    lines = scored_lines(tokens, num_top=num_top)
    _, out = _drawn(device, logits, lines)
    places = tuple(enumerate(tokens))
    scores = Scores(out=out, logits=None, num_top=num_top, places=places)
    return [read_line(scores, line, token, num_top) for line, token in places]


def _drawn(device: str, logits: NDArray[np.float32], lines: HostLines) -> tuple[torch.Tensor, torch.Tensor]:
    held = torch.from_numpy(logits).to(device)
    sent = [torch.from_numpy(array).to(device) for array in arrays(lines)]
    out = try_draw(held, *device_lines(lines, sent), num_top=lines.num_top)
    assert out is not None
    return held, out.cpu()
