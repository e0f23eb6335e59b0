"""Store what `transformers` says in fp32, so that the comparison runs without torch.

    python -m tests.golden.make_logits        (needs the extra `parity`; pulls the two real models)

Writes logits.npz next to this file: for each case the prompt's `tokens` [T], a fixed random choice of vocabulary
`columns` [C] with their `logits` [T, C], and the best ids `top_ids` [T, K] with `top_logits` [T, K].
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.core.settings import Settings
from headrace.model import open_checkpoint
from headrace.model.store import Store
from headrace.testing.checkpoints import FAMILIES, write_checkpoint
from headrace.text import load_tokenizer
from tests.parity_torch.hf_truth import directory_logits, gemma3_logits, smollm2_logits

TEXT = "Water turns the mill wheel; the wheel turns the stones. In 1783 the miller of Ghent wrote: “flour, 12 sacks”."
REAL = {"smollm2-135m": smollm2_logits, "gemma3-270m": gemma3_logits}
NUM_REAL_TOKENS, NUM_TINY_TOKENS, NUM_COLUMNS, NUM_TOP = 24, 40, 96, 8

Case = tuple[str, list[int], NDArray[np.float32]]


def tiny_cases() -> Iterator[Case]:
    """Yield every family's tiny checkpoint on random bytes, long enough to leave the windows."""
    tokens = np.random.RandomState(1).randint(0, 256, NUM_TINY_TOKENS).tolist()
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            yield f"tiny-{family}", tokens, directory_logits(write_checkpoint(Path(directory), family), tokens)


def real_cases() -> Iterator[Case]:
    """Yield the real models on the first tokens of a text."""
    store = Store(Path(Settings().cache_dir))
    for name, truth in REAL.items():
        checkpoint = open_checkpoint(store.pull(name).path)
        tokens = load_tokenizer(checkpoint.text_files).encode(TEXT, add_special=True)[:NUM_REAL_TOKENS]
        yield name, tokens, truth(checkpoint, tokens)
        checkpoint.close()


def main() -> None:
    """Write logits.npz."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for cases in (tiny_cases(), real_cases()):
        for name, tokens, logits in cases:
            vocab_size = logits.shape[1]
            columns = np.sort(np.random.RandomState(2).choice(vocab_size, NUM_COLUMNS, replace=False))
            top_ids = np.argsort(-logits, axis=1, kind="stable")[:, :NUM_TOP]
            arrays[f"{name}/tokens"] = np.array(tokens, np.int32)
            arrays[f"{name}/columns"] = columns.astype(np.int32)
            arrays[f"{name}/logits"] = logits[:, columns]
            arrays[f"{name}/top_ids"] = top_ids.astype(np.int32)
            arrays[f"{name}/top_logits"] = np.take_along_axis(logits, top_ids, axis=1)
            print(f"{name}: {logits.shape[0]} tokens, largest logit {np.abs(logits).max():.1f}")
    np.savez_compressed(Path(__file__).with_name("logits.npz"), **arrays)


if __name__ == "__main__":
    main()
