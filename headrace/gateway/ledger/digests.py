"""Which requests are equal, and which begin alike, told by digests under a key of the database: no content is kept.

Owns nothing but the key. Whoever has the key can check a guess and nothing else, so it stays in the database, beside
the digests, for comparisons that outlive a process; `gateway.digests = false` keeps none.
The tokens of a prompt are digested once, at 64, 128, … tokens on the way: ten hexadecimal digits each, so that two of a
million prompts are mistaken for each other about every other time, and never enough of them to change a share.
Source: RFC 7693 (BLAKE2b, keyed mode and personalization).
"""

from __future__ import annotations

import hashlib
import secrets
from array import array

import msgspec

from headrace.core.request import Request
from headrace.econ.stack.rows import PREFIX_DIGITS, PREFIX_LEVELS
from headrace.gateway.store import Database

_PERSON = b"headrace-traffic"
_encode = msgspec.json.Encoder(order="deterministic").encode


class Traces(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of how a request looked."""

    is_stream: bool = False
    is_repeatable: bool = False
    most_output: int | None = None
    request_digest: str | None = None
    prefix_digests: str | None = None


NO_TRACES = Traces()


class Digests:
    """Digests of requests under one key; without a key, none."""

    def __init__(self, key: str | None) -> None:
        self._begun: hashlib.blake2b | None = None  # a digest with its key taken in, of which each request has a copy
        if key is not None:
            own = hashlib.blake2b(key.encode(), person=_PERSON).digest()
            self._begun = hashlib.blake2b(key=own, digest_size=PREFIX_DIGITS // 2, person=_PERSON)

    def trace(self, request: Request, most_output: int) -> Traces:
        """Return what is kept of a request."""
        given = request.given
        temperature = request.sampling.temperature if given is None else given.temperature
        is_stream = request.wants_stream if given is None else given.wants_stream
        whole, prefixes = self._digest(request)
        return Traces(is_stream, temperature == 0.0, most_output, whole, prefixes)

    def _digest(self, request: Request) -> tuple[str | None, str | None]:
        """Return the digests of a request and of the beginnings of its prompt."""
        if self._begun is None:
            return None, None
        state, prefixes = self._begun.copy(), ""
        if request.prompt:
            try:
                tokens = array("q", request.prompt)
            except (
                OverflowError
            ):  # ids that no model has: the request was refused for them, and is settled all the same
                return None, None
            start = 0
            for level in PREFIX_LEVELS:
                if level > len(tokens):
                    break
                state.update(tokens[start:level])
                prefixes, start = prefixes + state.hexdigest(), level
            state.update(tokens[start:])
        state.update(_encode((request.model, request.source, _answer_shape(request))))
        return state.hexdigest(), prefixes


def _answer_shape(request: Request) -> object:
    """Return what decides the answer besides the prompt."""
    given = request.given
    if given is not None:
        if given.wants_stream or given.labels or given.headers:
            return msgspec.structs.replace(given, wants_stream=False, labels=(), headers=())
        return given
    sampling = request.sampling
    if sampling.temperature == 0.0:
        sampling = msgspec.structs.replace(sampling, seed=0)  # one that the API may have drawn
    return sampling, request.stop.max_tokens, request.stop.stop_strings, request.n


async def read_digest_key(database: Database) -> str:
    """Return the database's key for digests; draw it on first use."""
    async with database.transaction() as tx:
        await tx.fetch(
            "INSERT INTO secrets VALUES ('traffic', $1) ON CONFLICT (name) DO NOTHING", secrets.token_hex(32)
        )
        (row,) = await tx.fetch("SELECT value FROM secrets WHERE name = 'traffic'")
    return str(row["value"])
