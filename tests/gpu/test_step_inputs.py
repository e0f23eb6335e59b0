"""What a step brings along reaches its place in one kernel, or in plain ops, whatever is padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headrace.ops.cuda import launching
from headrace.ops.cuda.step_inputs import begin_step

VOCABULARY = 1000


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize(("tokens", "changes"), [(1, 0), (5, 33), (300, 7), (4, 260)])
def test_drawn_tokens_and_changes_are_put_where_they_belong(
    device: str, is_plain: bool, tokens: int, changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_plain:
        monkeypatch.setattr(launching, "_failed", {"step inputs": "for this test"})
    random = np.random.RandomState(tokens)
    own = random.randint(0, VOCABULARY, tokens).astype(np.int32)
    drawn = np.stack([random.randint(0, VOCABULARY, 9), *random.rand(5, 9)], axis=1)
    drawn[3, 0] = VOCABULARY + 7  # of a failed row: nobody reads it, but it must be a token
    ahead = random.randint(-1, 9, tokens).astype(np.int32)
    table = random.randint(0, 100, (11, 60)).astype(np.int32)
    places = np.where(random.rand(changes) < 0.3, -1, random.permutation(table.size - 1)[:changes]).astype(np.int32)
    blocks = random.randint(0, 100, changes).astype(np.int32)

    there = [torch.from_numpy(array.copy()).to(device) for array in (own, ahead, drawn, table)]
    begin_step(*there, torch.from_numpy(np.stack((places, blocks))).to(device), vocab_size=VOCABULARY)

    expected = np.where(ahead < 0, own, np.minimum(drawn[ahead, 0], VOCABULARY - 1))
    assert there[0].tolist() == expected.tolist()
    table.reshape(-1)[places[places >= 0]] = blocks[places >= 0]
    assert there[3].flatten()[:-1].tolist() == table.reshape(-1)[:-1].tolist()
