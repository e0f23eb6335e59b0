"""How long a step may be, how many sequences are in it, and how much of it prompts get beside those that decode.

Pure. Called by `app.loading`, and by `cli.sim` for an engine that is simulated.
Rule: a setting wins. On a CPU a step costs what its tokens cost, so short ones keep gaps short. A GPU reads all weights
for any step: long prompts come in long steps, as far as their numbers take a small part of its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from headrace.app.derived import Derived
from headrace.core.settings import EngineSettings

_CPU_SEQS, _CPU_TOKENS = 64, 512
_DEVICE_SEQS, _SMALL_DEVICE_SEQS = 256, 64
_LARGE_DEVICE_BYTES = 32 << 30
_DEVICE_TOKENS = (8192, 4096, 2048, 1024, 512)
_SCRATCH_SHARE = 16  # of free memory: one part in this many
_DEVICE_CHUNK = 512  # prompt tokens that keep a GPU's matrix units busy, in few times a decode step's time
_CHUNK_SHARE = 2  # of a step: what prompts get beside few that decode is one part in this many


class StepSizes(NamedTuple):
    """Sequences and tokens of a step at most."""

    seqs: Derived[int]
    tokens: Derived[int]


class DeviceRoom(NamedTuple):
    """What of a GPU's memory is free, and what steps of so many tokens and sequences take beside weights and pool."""

    free_bytes: int
    scratch_bytes: Callable[[int, int], int]


def step_sizes(engine: EngineSettings, backend: str, room: DeviceRoom | None = None) -> StepSizes:
    """Return what is set, or what suits the backend; without a known GPU, what suits a large one."""
    asked_seqs, asked_tokens = engine.max_num_seqs, engine.max_step_tokens
    seqs = _seqs(backend, room) if asked_seqs is None else Derived(asked_seqs, "engine.max_num_seqs")
    if asked_tokens is not None:
        return StepSizes(seqs, Derived(asked_tokens, "engine.max_step_tokens"))
    return StepSizes(seqs, _tokens(backend, room, seqs.value))


def _seqs(backend: str, room: DeviceRoom | None) -> Derived[int]:
    if backend != "cuda":
        return Derived(_CPU_SEQS, f"what suits the {backend} backend")
    if room is not None and room.free_bytes < _LARGE_DEVICE_BYTES:
        return Derived(_SMALL_DEVICE_SEQS, f"the GPU has less than {_LARGE_DEVICE_BYTES >> 30} GiB free")
    return Derived(_DEVICE_SEQS, "what suits a GPU with much memory")


def _tokens(backend: str, room: DeviceRoom | None, seqs: int) -> Derived[int]:
    if backend != "cuda":
        return Derived(_CPU_TOKENS, f"what suits the {backend} backend")
    *longer, least = _DEVICE_TOKENS
    most = longer[0]
    if room is None:
        return Derived(most, "keeps a GPU busy with prompts")
    below = room.scratch_bytes(least, seqs)
    fitting = (n for n in longer if (room.scratch_bytes(n, seqs) - below) * _SCRATCH_SHARE <= room.free_bytes)
    if (tokens := next(fitting, least)) == most:
        return Derived(most, "keeps a GPU busy with prompts")
    return Derived(tokens, f"steps of {2 * tokens:,} would take 1/{_SCRATCH_SHARE} of the GPU's free memory more")


def chunk_tokens(engine: EngineSettings, backend: str, sizes: StepSizes) -> Derived[int]:
    """Return how many prompt tokens go beside few that decode: a longer chunk is a gap that they notice."""
    seqs, tokens = sizes.seqs.value, sizes.tokens.value
    if engine.chunk_tokens is not None:
        return Derived(min(engine.chunk_tokens, tokens), "engine.chunk_tokens")
    if not chunk_grows(backend):
        return Derived(min(_DEVICE_CHUNK, tokens), "beside any that decode: keeps a GPU busy")
    return Derived(
        max(tokens // _CHUNK_SHARE, 1),
        f"half of engine.max_step_tokens beside few that decode, all of it beside {-(-seqs // 2)}",
    )


def chunk_grows(backend: str) -> bool:
    """Say whether prompts get more of a step beside many that decode: on a CPU these make it long by themselves."""
    return backend != "cuda"
