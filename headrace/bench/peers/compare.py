"""The comparison: every engine does the same token-exact work in turn, round after round; ratios are taken per round.

All engines stay loaded and idle while another works, so a machine whose speed drifts drifts for all of them.

    prefill  512 new random tokens in, 1 out: tokens in / seconds
    decode   batch B: (seconds of 65 tokens out − seconds of 1 out) / 64 steps, prompts of 16 random tokens

Random ids defeat every prefix cache. Medians over rounds; the spread is min … max.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import msgspec

from headrace.bench.peers.process import PeerError, PeerProcess
from headrace.bench.token_prompts import TokenPrompts

PREFILL_TOKENS, DECODE_PROMPT, DECODE_STEPS = 512, 16, 64
MOST_KL = (
    0.02  # mean, in nats, of an engine of like quality: what is made from the same weights in eight bits stays below
)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One engine on one task: tokens per second of each round."""

    engine: str
    family: str
    weights: str
    task: str
    rounds: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Return the median over rounds."""
        return median(self.rounds)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine could not do, in its own words."""

    engine: str
    task: str
    reason: str


def measure_prefill(peer: PeerProcess, prompts: TokenPrompts, seed: int) -> float:
    """Return prompt tokens per second of one 512-token prompt."""
    return PREFILL_TOKENS / peer.seconds(prompts.batch(1, PREFILL_TOKENS, seed), 1)


def measure_decode(peer: PeerProcess, prompts: TokenPrompts, batch: int, seed: int) -> float:
    """Return output tokens per second of `batch` sequences, the prompt's time taken away."""
    first = peer.seconds(prompts.batch(batch, DECODE_PROMPT, seed), 1)
    whole = peer.seconds(prompts.batch(batch, DECODE_PROMPT, seed + 1), 1 + DECODE_STEPS)
    if whole <= first:
        raise PeerError(f"{peer.spec.name}: {DECODE_STEPS} more tokens took no time; the clock cannot be trusted")
    return batch * DECODE_STEPS / (whole - first)


def run_rounds(
    peers: Sequence[PeerProcess],
    prompts: TokenPrompts,
    *,
    batches: Sequence[int],
    rounds: int,
    progress: Callable[[str], None],
) -> tuple[list[Measurement], list[Failure]]:
    """Measure every peer on every task, interleaved. One unmeasured round warms all of them up."""
    tasks: dict[str, Callable[[PeerProcess, int], float]] = {
        f"prefill {PREFILL_TOKENS}": lambda peer, seed: measure_prefill(peer, prompts, seed)
    }
    for batch in batches:
        tasks[f"decode batch {batch}"] = partial(_decode_task, prompts, batch)
    values: dict[tuple[str, str], list[float]] = {}
    failures: dict[tuple[str, str], Failure] = {}
    for index in range(-1, rounds):
        for task, measure in tasks.items():
            for peer in peers:
                key = (peer.spec.name, task)
                if key in failures:
                    continue
                progress(f"{'warm-up' if index < 0 else f'round {index + 1}/{rounds}'} · {task} · {peer.spec.name}")
                try:
                    value = measure(peer, 1000 * (index + 2))
                except PeerError as error:
                    if index < 0:
                        continue  # a stumble in the warm-up counts only if it comes again
                    failures[key] = Failure(engine=peer.spec.name, task=task, reason=str(error))
                    continue
                if index >= 0:
                    values.setdefault(key, []).append(value)
    by_name = {peer.spec.name: peer.spec for peer in peers}
    found = [
        Measurement(
            engine=name, family=by_name[name].family, weights=by_name[name].weights, task=task, rounds=tuple(rates)
        )
        for (name, task), rates in values.items()
    ]
    return found, list(failures.values())


def _decode_task(prompts: TokenPrompts, batch: int, peer: PeerProcess, seed: int) -> float:
    return measure_decode(peer, prompts, batch, seed)


def best_ratio(measurements: Sequence[Measurement], task: str, ours: str) -> tuple[float, str] | None:
    """Return (ours / best other family's, that engine) on `task`; the ratio is the median of the per-round ratios."""
    mine = next((m for m in measurements if m.task == task and m.engine == ours), None)
    others = [m for m in measurements if m.task == task and m.family != "headrace"]
    if mine is None or not others:
        return None
    best = max(others, key=lambda m: m.tokens_per_s)
    pairs = zip(mine.rounds, best.rounds, strict=False)
    return median(ours_rate / theirs for ours_rate, theirs in pairs), best.engine
