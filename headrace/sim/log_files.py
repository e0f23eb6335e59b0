"""Reading a decision log: the files of one engine's life as one run of lines, and what its steps cost.

Owns nothing. A log of another format, with a gap or without its beginning is refused; a last line that was cut off, as
a crash leaves it, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from headrace.core.errors import ConfigError
from headrace.core.request import SeqId
from headrace.engine.decision_lines import FORMAT, Line, LogLine, PlanLine, ResultLine
from headrace.sim.step_times import StepTimes, fit, step_terms

_lines: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def read_log(path: Path) -> Iterator[tuple[str, Line]]:
    """Yield (where, line) of an engine's whole log: PATH and the older files beside it that belong to it.

    Raises ConfigError if it is not a log, not whole, or of another format. A last line that was cut off is left out.
    """
    for file in _files_of(path):
        with file.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                if not text.endswith(b"\n"):
                    return  # the process ended while it was written
                where = f"{file}:{number}"
                line = _decode(text, where)
                if not (isinstance(line, LogLine) and line.segment):
                    yield where, line


def measured_steps(lines: Iterable[tuple[str, Line]], source: str) -> StepTimes:
    """Fit step times to the steps of a log. Raises ConfigError if there are too few."""
    ends: dict[SeqId, int] = {}
    members: list[SeqId] = []
    terms: dict[int, tuple[int, int, int, float]] = {}
    observed: list[tuple[tuple[int, int, int, float], float]] = []
    on_device = False
    for _, line in lines:
        if isinstance(line, LogLine):
            on_device = not line.limits.chunk_grows
        elif isinstance(line, PlanLine) and line.step_id is not None:
            members = line.members if line.members is not None else members
            changed = {change.seq_id: (change.start, change.count) for change in line.changes}
            parts = [changed.get(seq_id) or (ends[seq_id], 1) for seq_id in members]
            terms[line.step_id] = step_terms(parts)
            ends = {seq_id: start + count for seq_id, (start, count) in zip(members, parts, strict=True)} | {
                seq_id: end for seq_id, end in ends.items() if seq_id not in members
            }
        elif isinstance(line, ResultLine) and line.step_id in terms:
            observed.append((terms.pop(line.step_id), line.elapsed_s))
            for seq_id, _ in line.ends:
                ends.pop(seq_id, None)
    return fit(observed, source, on_device=on_device)


def _files_of(path: Path) -> list[Path]:
    """Return the files of the engine's life that `path` belongs to, first to last."""
    head = _head(path)
    base = path.name.rstrip("0123456789").removesuffix(".") if path.suffix[1:].isdigit() else path.name
    found: dict[int, Path] = {}
    for other in path.parent.glob(f"{base}*"):
        if other.name == base or other.name.removeprefix(base + ".").isdigit():
            other_head = _head(other)
            if other_head.run == head.run:
                found[other_head.segment] = other
    if sorted(found) != list(range(max(found) + 1)):
        missing = next(i for i in range(max(found) + 1) if i not in found)
        raise ConfigError(
            f"decision log {path}: file {missing} of {max(found) + 1} of this engine's life is gone, and a replay "
            "begins at the beginning; raise engine.decision_log_mib to keep more"
        )
    return [found[segment] for segment in sorted(found)]


def _head(path: Path) -> LogLine:
    try:
        with path.open("rb") as file:
            text = file.readline()
    except OSError as err:
        raise ConfigError(f"decision log {path} cannot be read: {err}") from err
    line = _decode(text, f"{path}:1")
    if not isinstance(line, LogLine):
        raise ConfigError(f"{path}:1 is no head of a decision log")
    if line.format != FORMAT:
        raise ConfigError(f"decision log {path} has format {line.format}; this version replays format {FORMAT}")
    return line


def _decode(text: bytes, where: str) -> Line:
    try:
        return _lines.decode(text)
    except msgspec.MsgspecError as err:
        raise ConfigError(f"{where} is no line of a decision log: {err}") from err
