"""The places below the KV pool, as settings ask for them: host memory, a directory, a Redis server.

Owns how they are put together and the secret that names in shared places are hashed under. Called by `loading`.
Invariant: a place that cannot be used does not keep the server from starting; it is retried and shows in the metrics.
Only a setting that can never work (a URL that is none, a package that is missing) is a ConfigError.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import headrace
from headrace.app.plan import Plan
from headrace.core.protocols import Clock
from headrace.core.settings import EngineSettings
from headrace.executor.packed_cache import fingerprint
from headrace.kv.tiers import KeyChain, Places, TierHierarchy, derive_format, derive_secret
from headrace.kv.transfer import DiskTransport, FrameCodec, HostPool, Mover, RedisTransport
from headrace.kv.transfer.host_pool import copy_rate
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program
from headrace.ops.native.library import LIBRARY_PATH, active_isa

_REDIS_BYTES_PER_S = 200e6  # until measured
_log = logging.getLogger(__name__)


def open_host_pool(plan: Plan) -> HostPool | None:
    """Return the memory of the RAM tier; None if the plan has none. Raises OutOfMemory."""
    block_bytes = plan.kv_bytes.value // plan.num_blocks.value
    num_slots = plan.kv_ram_bytes.value // block_bytes
    return HostPool(num_slots, block_bytes) if num_slots else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where KV blocks come from, and the settings of the places that keep them."""

    engine: EngineSettings
    program: Program
    checkpoint: Checkpoint
    cache_directory: Path


def open_tiers(host: HostPool, plan: Plan, origin: Origin, clock: Clock) -> TierHierarchy:
    """Return the places below the pool, nearest first, their threads not started. Raises ConfigError."""
    engine = origin.engine
    secret = derive_secret(engine.kv_secret or _own_secret(origin.cache_directory))
    format_id = _format(plan, origin)
    codec = FrameCodec(secret, format_id, host.block_bytes)
    movers: list[Mover] = []
    if engine.kv_disk_dir is not None:
        disk = DiskTransport(Path(engine.kv_disk_dir).expanduser(), engine.kv_disk_bytes, clock)
        movers.append(Mover("disk", disk, codec, host, clock, limit_s=engine.kv_wait_s))
    if engine.kv_redis_url is not None:
        server = RedisTransport(engine.kv_redis_url)
        movers.append(
            Mover("redis", server, codec, host, clock, bytes_per_s=_REDIS_BYTES_PER_S, limit_s=engine.kv_wait_s)
        )
    copy_s = host.block_bytes / copy_rate()
    chain, places = KeyChain(secret, format_id), Places(movers)
    return TierHierarchy(host.num_slots, host.block_bytes, chain, places, copy_s=copy_s, wait_s=engine.kv_wait_s)


def _format(plan: Plan, origin: Origin) -> bytes:
    """Return what blocks depend on beside their tokens: a block of anything else is never taken for one of ours."""
    weights = fingerprint(origin.program, origin.checkpoint, plan.quantization.value)
    block_bytes = plan.kv_bytes.value // plan.num_blocks.value
    parts = [
        headrace.__version__,
        plan.backend.value,
        weights,
        plan.kv_dtype.value,
        str(plan.block_size.value),
        str(block_bytes),
    ]
    if plan.backend.value == "native":
        # Other instructions and other builds round differently, and equal tokens are a promise.
        parts += [active_isa(), hashlib.blake2b(LIBRARY_PATH.read_bytes(), digest_size=16).hexdigest()]
    return derive_format(*parts)


def _own_secret(cache: Path) -> str:
    """Return this user's secret, made once and kept beside the models; one for this process alone if it cannot be."""
    path = cache / "kv_secret"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if text := path.read_text(encoding="ascii").strip():
            return text
    text = secrets.token_hex(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(text + "\n")
        partial.replace(path)
    except OSError as error:
        _log.warning(
            "the secret of the KV tiers cannot be kept (%s): what they store is of no use after a restart; "
            "set engine.kv_secret or make cache_dir writable",
            error.strerror,
        )
    return text
