"""From settings, machine and model to a Plan: every number the engine is built with, each with its reason.

Owns the derivations; nothing downstream changes a Plan. `headrace plan --explain` prints it.
Invariant: a Plan fits into memory, or OutOfMemory says what is needed, what is there and what to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from headrace.app.derived import Derived
from headrace.app.hardware import Hardware
from headrace.app.step_sizes import StepSizes, chunk_tokens, step_sizes
from headrace.core.errors import ConfigError, OutOfMemory
from headrace.core.request import Reach
from headrace.core.settings import EngineSettings, KvDtype, PrefixPolicy, Quantization
from headrace.sched.reaches import least_blocks

T = TypeVar("T")

MIB = 1 << 20
MAX_POSITIONS = 1 << 20  # of one sequence: beyond, fp32 angles of a rotation are too coarse
_LEAST_CONTEXT = 256  # tokens of one sequence that a pool must hold to be worth starting
_STAGING_BYTES, _STAGING_SHARE, _LEAST_STAGING = 256 * MIB, 16, 8  # most, a part of what is free, least in blocks
_KV_SHARE = 4  # an unset pool takes one part in this many of what is free after loading


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a plan needs to know of a model on one backend. Sizes in bytes.

    weight_bytes    memory for the weights, as that backend keeps them
    kv_token_bytes  one token's K and V over all layers
    widest_window   of the attention layers, if every one has a window
    on_device       whether all that is in the memory of a GPU, of which the KV pool may take what is left
    """

    name: str
    max_positions: int
    weight_bytes: int
    kv_token_bytes: int
    widest_window: int | None = None
    on_device: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one engine is built."""

    model: str
    backend: Derived[str]
    quantization: Derived[Quantization]
    kv_dtype: Derived[KvDtype]
    threads: Derived[int]
    max_context: Derived[int]
    reach: Derived[Reach | None]
    num_blocks: Derived[int]
    block_size: Derived[int]
    max_num_seqs: Derived[int]
    max_step_tokens: Derived[int]
    chunk_tokens: Derived[int]
    max_waiting: Derived[int]
    prefix_cache: Derived[bool]
    prefix_policy: Derived[PrefixPolicy]
    batch_invariant: Derived[bool]
    early_launch: Derived[bool]
    async_scheduling: Derived[bool]
    kv_ram_bytes: Derived[int]
    weight_bytes: Derived[int]
    kv_bytes: Derived[int]

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield (field, value, reason)."""
        yield "model", self.model, "named"
        for name in self.__dataclass_fields__:
            derived = getattr(self, name)
            if isinstance(derived, Derived):
                is_size = name.endswith("_bytes")
                shown = f"{derived.value / MIB:,.0f} MiB" if is_size else _shown(derived.value)
                yield name.removesuffix("_bytes") if is_size else name, shown, derived.reason


def _shown(value: object) -> str:
    if isinstance(value, Reach):
        return f"first {value.num_sinks:,} and last {value.window:,} tokens"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value}"


def resolve(
    engine: EngineSettings,
    hardware: Hardware,
    facts: ModelFacts,
    backend: Derived[str],
    sizes: StepSizes | None = None,
) -> Plan:
    """Fill in what settings leave open. Raises OutOfMemory, or ConfigError for settings that contradict each other.

    sizes  of steps, if they were settled before
    """
    sizes = step_sizes(engine, backend.value) if sizes is None else sizes
    reach = _reach(engine, facts)
    context = _context(engine, facts, reach.value)
    held = _held_tokens(engine, sizes, context.value, reach.value)
    num_blocks, kv_bytes = _kv_pool(engine, hardware, facts, sizes, held)
    capacity = num_blocks.value * engine.block_size
    rolling = reach.value or (Reach(window=facts.widest_window) if facts.widest_window is not None else None)
    if capacity < context.value and (rolling is None or least_blocks(rolling, engine.block_size) > num_blocks.value):
        context = Derived(capacity, f"what the KV pool holds; {context.value:,} is {context.reason}")
    return Plan(
        model=facts.name,
        backend=backend,
        quantization=_quantization(engine, backend.value),
        kv_dtype=_set(engine.kv_dtype, "engine.kv_dtype"),
        threads=_threads(engine, hardware),
        max_context=context,
        reach=reach,
        num_blocks=num_blocks,
        block_size=_set(engine.block_size, "engine.block_size"),
        max_num_seqs=sizes.seqs,
        max_step_tokens=sizes.tokens,
        chunk_tokens=chunk_tokens(engine, backend.value, sizes),
        max_waiting=_set(engine.max_waiting, "engine.max_waiting"),
        prefix_cache=_set(engine.prefix_cache, "engine.prefix_cache"),
        prefix_policy=_set(engine.prefix_policy, "engine.prefix_policy"),
        batch_invariant=_batch_invariant(engine, backend.value),
        early_launch=_early_launch(engine, backend.value),
        async_scheduling=async_scheduling(engine, backend.value),
        kv_ram_bytes=_kv_ram(engine, hardware, facts),
        weight_bytes=Derived(facts.weight_bytes, f"what the {backend.value} backend keeps in memory"),
        kv_bytes=kv_bytes,
    )


def _set(value: T, key: str) -> Derived[T]:
    return Derived(value, key)


def _threads(engine: EngineSettings, hardware: Hardware) -> Derived[int]:
    if engine.threads is not None:
        return _set(engine.threads, "engine.threads")
    return Derived(hardware.cores, f"one per core, {hardware.cores} of them may be used")


def _quantization(engine: EngineSettings, backend: str) -> Derived[Quantization]:
    if backend == "reference" and engine.quantization != "auto":
        raise ConfigError(
            f"engine.quantization is '{engine.quantization}', and the reference backend computes in fp32 only; "
            "leave it at 'auto', or use the native backend",
            param="engine.quantization",
        )
    if engine.quantization == "fp8" and backend != "cuda":
        raise ConfigError(
            f"engine.quantization is 'fp8', which the cuda backend alone computes in; the {backend} backend takes "
            "'auto', 'bf16', 'int8' or 'int4'",
            param="engine.quantization",
        )
    return _set(engine.quantization, "engine.quantization")


def _batch_invariant(engine: EngineSettings, backend: str) -> Derived[bool]:
    if backend == "cuda":
        return _set(engine.batch_invariant, "engine.batch_invariant")
    return Derived(True, f"the {backend} backend always is")


def _early_launch(engine: EngineSettings, backend: str) -> Derived[bool]:
    if backend == "cuda":
        return _set(engine.early_launch, "engine.early_launch")
    return Derived(False, f"the {backend} backend launches nothing")


def async_scheduling(engine: EngineSettings, backend: str) -> Derived[bool]:
    """Return whether the next step is planned while one runs. Raises ConfigError where that cannot be."""
    if engine.async_scheduling != "auto":
        if engine.async_scheduling == "on" and backend == "native":
            raise ConfigError(
                "engine.async_scheduling is 'on', and the native backend computes on the cores that would plan; leave "
                "it at 'auto'",
                param="engine.async_scheduling",
            )
        return _set(engine.async_scheduling == "on", "engine.async_scheduling")
    if backend == "cuda":
        return Derived(True, "the GPU works while the CPU plans")
    return Derived(False, "steps run on the cores that plan")


def _reach(engine: EngineSettings, facts: ModelFacts) -> Derived[Reach | None]:
    if engine.attention_window is None:
        return Derived(None, "tokens attend to all before them")
    reach = Reach(window=engine.attention_window, num_sinks=engine.attention_sinks)
    if reach.num_seen > facts.max_positions:
        raise ConfigError(
            f"engine.attention_window is {reach.window:,} and engine.attention_sinks {reach.num_sinks:,}; together "
            f"they may be no more than the {facts.max_positions:,} tokens '{facts.name}' was trained for; lower them",
            param="engine.attention_window",
        )
    return Derived(reach, "engine.attention_window, engine.attention_sinks")


def _held_tokens(engine: EngineSettings, sizes: StepSizes, context: int, reach: Reach | None) -> int:
    """Return how many tokens of a full context are in memory at a time."""
    if reach is None:
        return context
    rolling = least_blocks(reach, engine.block_size) * engine.block_size + sizes.tokens.value
    return min(context, rolling)


def _context(engine: EngineSettings, facts: ModelFacts, reach: Reach | None) -> Derived[int]:
    trained = facts.max_positions
    if engine.max_context is None:
        return Derived(trained, "what the checkpoint was trained for")
    if reach is None and engine.max_context > trained:
        raise ConfigError(
            f"engine.max_context is {engine.max_context:,}; '{facts.name}' was trained for {trained:,}; lower it, or "
            "set engine.attention_window",
            param="engine.max_context",
        )
    if engine.max_context > MAX_POSITIONS:
        raise ConfigError(
            f"engine.max_context is {engine.max_context:,}; positions are served up to {MAX_POSITIONS:,}; lower it",
            param="engine.max_context",
        )
    return _set(engine.max_context, "engine.max_context")


def _kv_ram(engine: EngineSettings, hardware: Hardware, facts: ModelFacts) -> Derived[int]:
    """Return the bytes of host memory below the pool. Without the prefix cache nothing has a name to be kept under."""
    wanted, has_places_below = engine.kv_ram_bytes, engine.kv_disk_dir is not None or engine.kv_redis_url is not None
    if not engine.prefix_cache and (wanted or has_places_below):
        raise ConfigError(
            "engine.prefix_cache is off, and engine.kv_ram_bytes, kv_disk_dir and kv_redis_url keep what it has found; "
            "switch it on, or leave them out",
            param="engine.prefix_cache",
        )
    block_bytes = facts.kv_token_bytes * engine.block_size
    if wanted is not None:
        if has_places_below and wanted < _LEAST_STAGING * block_bytes:
            raise ConfigError(
                f"engine.kv_ram_bytes is {wanted:,}; blocks go to disk and Redis by way of it, which takes room for at "
                f"least {_LEAST_STAGING} of them: {_LEAST_STAGING * block_bytes:,}",
                param="engine.kv_ram_bytes",
            )
        return _set(wanted, "engine.kv_ram_bytes")
    if not has_places_below:
        return Derived(0, "the KV pool is host memory already; engine.kv_ram_bytes adds a tier below it")
    share = max(hardware.memory_available - facts.weight_bytes, 0) // _STAGING_SHARE
    size = max(min(_STAGING_BYTES, share), _LEAST_STAGING * block_bytes)
    return Derived(size, "what disk and Redis are reached through")


def _kv_pool(
    engine: EngineSettings, hardware: Hardware, facts: ModelFacts, sizes: StepSizes, max_context: int
) -> tuple[Derived[int], Derived[int]]:
    """Return blocks and bytes of the pool."""
    block_bytes = facts.kv_token_bytes * engine.block_size
    below = 0 if facts.on_device else _kv_ram(engine, hardware, facts).value
    free = hardware.memory_available - facts.weight_bytes - below
    least = _blocks_for(min(max_context, _LEAST_CONTEXT), engine.block_size)
    if engine.attention_window is not None:
        least = _blocks_for(max_context - sizes.tokens.value, engine.block_size)
    if engine.kv_memory_mib is not None:
        wanted = engine.kv_memory_mib * MIB
        if wanted > free:
            raise _out_of_memory(hardware, facts, wanted, "lower engine.kv_memory_mib or take a smaller model")
        num_blocks, reason = wanted // block_bytes, "engine.kv_memory_mib"
    else:
        full = sizes.seqs.value * _blocks_for(max_context, engine.block_size)
        share = max(0, free) // (1 if facts.on_device else _KV_SHARE) // block_bytes
        num_blocks = min(share, full)
        reason = (
            f"{sizes.seqs.value} full contexts of {max_context:,} tokens"
            if full <= share
            else f"{'all' if facts.on_device else 'a quarter'} of the {max(0, free) / MIB:,.0f} MiB "
            "that are free after loading"
        )
    if num_blocks < least:
        remedy = "free memory, take a smaller model, or set engine.kv_memory_mib"
        raise _out_of_memory(hardware, facts, least * block_bytes, remedy)
    return (
        Derived(num_blocks, f"{reason}; a block of {engine.block_size} tokens takes {block_bytes / 1024:,.0f} KiB"),
        Derived(num_blocks * block_bytes, reason),
    )


def _blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def _out_of_memory(hardware: Hardware, facts: ModelFacts, kv_bytes: int, remedy: str) -> OutOfMemory:
    return OutOfMemory(
        f"'{facts.name}' needs {facts.weight_bytes / MIB:,.0f} MiB for weights and at least {kv_bytes / MIB:,.0f} MiB "
        f"for KV; {hardware.memory_available / MIB:,.0f} MiB are available; {remedy}"
    )
