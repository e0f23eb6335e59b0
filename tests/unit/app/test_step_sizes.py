"""How long steps are and how many sequences they hold: a setting wins; a GPU gets what its memory allows."""

from __future__ import annotations

import pytest

from headrace.app.step_sizes import DeviceRoom, chunk_tokens, step_sizes
from headrace.core.settings import EngineSettings

GIB = 1 << 30


def room(free_gib: float, per_token: int = 160_000) -> DeviceRoom:
    return DeviceRoom(int(free_gib * GIB), lambda tokens, seqs: per_token * tokens + 1_000_000 * seqs)


@pytest.mark.parametrize(
    ("free_gib", "seqs", "tokens"),
    [(139, 256, 8192), (40, 256, 8192), (22, 64, 8192), (14, 64, 4096), (3, 64, 1024), (1, 64, 512)],
)
def test_a_gpu_gets_the_longest_steps_that_take_little_of_its_memory(free_gib: float, seqs: int, tokens: int) -> None:
    sizes = step_sizes(EngineSettings(), "cuda", room(free_gib))
    assert (sizes.seqs.value, sizes.tokens.value) == (seqs, tokens)


def test_a_model_with_wide_layers_gets_shorter_steps() -> None:
    sizes = step_sizes(EngineSettings(), "cuda", room(22, per_token=1_000_000))
    assert sizes.tokens.value == 1024
    assert "steps of 2,048 would take 1/16 of the GPU's free memory more" in sizes.tokens.reason


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_cpu_keeps_steps_short(backend: str) -> None:
    sizes = step_sizes(EngineSettings(), backend)
    assert (sizes.seqs.value, sizes.tokens.value) == (64, 512)
    assert chunk_tokens(EngineSettings(), backend, sizes).value == 256


@pytest.mark.parametrize("backend", ["cuda", "native"])
def test_what_is_set_wins(backend: str) -> None:
    asked = EngineSettings(max_num_seqs=7, max_step_tokens=333)
    sizes = step_sizes(asked, backend, room(139))
    assert (sizes.seqs.value, sizes.tokens.value) == (7, 333)
    assert (sizes.seqs.reason, sizes.tokens.reason) == ("engine.max_num_seqs", "engine.max_step_tokens")
    assert chunk_tokens(asked, "cuda", sizes).value == 333


def test_an_unknown_gpu_counts_as_a_large_one() -> None:
    sizes = step_sizes(EngineSettings(), "cuda")
    assert (sizes.seqs.value, sizes.tokens.value) == (256, 8192)
    assert chunk_tokens(EngineSettings(), "cuda", sizes).value == 512
