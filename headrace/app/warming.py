"""Prompts that are computed and kept before anybody asks: files of them, and the model that takes them in.

Owns the form of a warm file: JSON lines, each a body of POST /v1/prefixes, checked as a whole before any is used.
Called by the server at start and by `headrace warm`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.api import PrefixBody, ServedModel, pin_prefix
from headrace.core.errors import ConfigError, HeadraceError
from headrace.core.protocols import Clock

_log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(PrefixBody)


def read_warm_file(path: Path) -> list[PrefixBody]:
    """Read a warm file. Raises ConfigError naming the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the warm file {path}: {error.strerror}") from error
    bodies: list[PrefixBody] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            body = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number}: {error}; each line is a JSON object with a prompt") from error
        if (body.prompt is None) == (body.messages is None):
            raise ConfigError(f"{path}, line {number}: give either 'prompt' or 'messages'")
        bodies.append(body)
    return bodies


async def warm_model(model: ServedModel, bodies: Sequence[PrefixBody], clock: Clock, *, is_first: bool) -> int:
    """Compute and keep the prefixes meant for a model, those that name none if it is the first; return how many.

    One that cannot be kept is named in the log and left out; they stay for as long as the server runs, or `ttl_s`.
    """
    count = 0
    for number, body in enumerate(bodies, 1):
        if body.model != model.name and not (body.model is None and is_first):
            continue
        ttl_s = math.inf if body.ttl_s is None else body.ttl_s
        try:
            await pin_prefix(model, body, f"warm-{number}", clock.now(), ttl_s)
            count += 1
        except HeadraceError as error:
            _log.warning("model '%s': prompt %d of the warm file is left out: %s", model.name, number, error.message)
    return count
