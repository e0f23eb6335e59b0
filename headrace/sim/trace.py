"""Recorded arrivals: when requests came, how long they were, and what they had in common.

Owns the reading of trace files; values only. Two formats, told apart by their first line:

    JSON lines, Mooncake's   timestamp (ms), input_length, output_length, hash_ids (one per 512 tokens)
    CSV, Azure's             TIMESTAMP, ContextTokens, GeneratedTokens

Equal ids mean an equal prefix; a request without ids shares nothing. Tokens are made up: every token of a block is the
block's id, so that two prompts agree exactly as far as the trace says.
Source: Mooncake, Qin et al., FAST 2025; Azure LLM inference trace 2023.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from headrace.core.errors import ConfigError

TRACE_BLOCK = 512  # tokens that one id of a trace stands for
_MOST_IDS = 1 << 31
_FIRST_OWN_ID = 1 << 30  # ids of prompts without any


class Arrival(msgspec.Struct, frozen=True):
    """One request of a trace."""

    at_s: float
    prompt_len: int
    output_len: int
    block_ids: tuple[int, ...]

    def prompt(self) -> list[int]:
        """Make the prompt's tokens up."""
        tokens = [token for block_id in self.block_ids for token in [block_id] * TRACE_BLOCK]
        return tokens[: self.prompt_len]


class Trace(msgspec.Struct, frozen=True):
    """Arrivals in order of time, the first at 0."""

    name: str
    arrivals: tuple[Arrival, ...]

    @property
    def num_distinct_blocks(self) -> int:
        """Count the different blocks of all prompts."""
        return len({block_id for arrival in self.arrivals for block_id in arrival.block_ids})

    def repeated_tokens(self) -> int:
        """Count the prompt tokens whose prefix came before: what a cache without a limit finds, full blocks only."""
        seen: set[int] = set()
        found = 0
        for arrival in self.arrivals:
            num_full = max(arrival.prompt_len - 1, 0) // TRACE_BLOCK
            for block_id in arrival.block_ids[:num_full]:
                if block_id not in seen:
                    break
                found += TRACE_BLOCK
            seen.update(arrival.block_ids[: arrival.prompt_len // TRACE_BLOCK])
        return found

    def first(self, num_requests: int | None) -> Trace:
        """Return the trace of the first requests only."""
        return self if num_requests is None else Trace(self.name, self.arrivals[:num_requests])

    def faster(self, factor: float) -> Trace:
        """Return the trace with all arrivals `factor` times as close together."""
        if factor <= 0:
            raise ConfigError(f"a rate of {factor} times the recorded one; it must be above 0")
        moved = [msgspec.structs.replace(arrival, at_s=arrival.at_s / factor) for arrival in self.arrivals]
        return Trace(self.name, tuple(moved))


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_trace(path: Path) -> Trace:
    """Read a trace. Raises ConfigError naming the file, the line and what is expected there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"trace {path} cannot be read: {err}") from err
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ConfigError(f"trace {path} is empty; it needs one request per line")
    arrivals = _read_json(path, lines) if lines[0].lstrip().startswith("{") else _read_csv(path, lines)
    arrivals.sort(key=lambda arrival: arrival.at_s)
    start_s = arrivals[0].at_s
    return Trace(path.name, tuple(msgspec.structs.replace(a, at_s=a.at_s - start_s) for a in arrivals))


def _read_json(path: Path, lines: Sequence[str]) -> list[Arrival]:
    decoder = msgspec.json.Decoder(_Line)
    arrivals: list[Arrival] = []
    for number, text in enumerate(lines, 1):
        try:
            line = decoder.decode(text)
        except msgspec.MsgspecError as err:
            raise ConfigError(
                f"trace {path}, line {number}: {err}; expected timestamp (ms), input_length, output_length, hash_ids"
            ) from err
        ids = tuple(line.hash_ids) or _own_ids(number, line.input_length)
        if len(ids) * TRACE_BLOCK < line.input_length or not all(0 <= block_id < _MOST_IDS for block_id in ids):
            raise ConfigError(
                f"trace {path}, line {number}: {len(ids)} hash_ids for {line.input_length} tokens; "
                f"one id from 0 to {_MOST_IDS - 1} is expected per {TRACE_BLOCK} tokens"
            )
        arrivals.append(_arrival(path, number, line.timestamp / 1e3, line.input_length, line.output_length, ids))
    return arrivals


def _read_csv(path: Path, lines: Sequence[str]) -> list[Arrival]:
    arrivals: list[Arrival] = []
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            at_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            prompt_len, output_len = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (KeyError, TypeError, ValueError) as err:
            raise ConfigError(
                f"trace {path}, line {number}: {err}; expected TIMESTAMP, ContextTokens and GeneratedTokens"
            ) from err
        arrivals.append(_arrival(path, number, at_s, prompt_len, output_len, _own_ids(number, prompt_len)))
    if not arrivals:
        raise ConfigError(f"trace {path} has a heading and no requests")
    return arrivals


def _arrival(path: Path, number: int, at_s: float, prompt_len: int, output_len: int, ids: tuple[int, ...]) -> Arrival:
    if prompt_len < 1 or output_len < 0:
        raise ConfigError(
            f"trace {path}, line {number}: {prompt_len} tokens in and {output_len} out; at least 1 and 0 are expected"
        )
    return Arrival(at_s, prompt_len, output_len, ids)


def _own_ids(number: int, prompt_len: int) -> tuple[int, ...]:
    """Return ids that no other prompt has."""
    return (_FIRST_OWN_ID + number,) * -(-prompt_len // TRACE_BLOCK)
