"""From a model's files to an engine that can be started: open, plan, load.

Owns the order in which the parts are put together; used alike by the server, `LLM` and the plan command.
Invariant: memory is checked before weights are read, and nothing is left open when a step fails.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.api import ServedModel
from headrace.app import backends
from headrace.app.generation_defaults import generation_defaults
from headrace.app.hardware import Hardware
from headrace.app.plan import Plan, resolve
from headrace.app.recording import Recording
from headrace.app.step_sizes import chunk_grows
from headrace.app.tiers import Origin, open_host_pool, open_tiers
from headrace.core.protocols import Clock
from headrace.core.request import SamplingParams
from headrace.core.settings import EngineSettings, SchedulingSettings, Settings
from headrace.core.stats import Observer
from headrace.core.text_files import TextFiles
from headrace.econ import AttributionPolicy, RentPolicy, RentTerms
from headrace.engine import AsyncEngine, Engine, StreamLimits
from headrace.executor.packed_cache import fingerprint
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program
from headrace.model.store import LocalModel
from headrace.sched import SchedulerLimits
from headrace.text import ChatTemplate, Tokenizer, find_template_faults, load_chat_template, load_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model found on disk and planned, weights not read yet. `close` releases its files."""

    name: str
    path: Path
    cache: Path
    checkpoint: Checkpoint
    program: Program
    plan: Plan
    policy: SchedulingSettings
    engine: EngineSettings
    streams: StreamLimits
    recording: Recording

    def close(self) -> None:
        """Unmap the files."""
        self.checkpoint.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in memory, behind an engine that has not been started."""

    name: str
    path: Path
    plan: Plan
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: SamplingParams
    max_context: int
    vocab_size: int
    engine: AsyncEngine
    shares_prefixes: bool
    fingerprint: str
    num_weights: int
    settle: Callable[[], None]  # waits until the engine is as fast as it gets; for measurements
    is_retired: bool = False  # other weights have taken its name


def open_model(local: LocalModel, settings: Settings, hardware: Hardware) -> OpenedModel:
    """Map a model's files and plan its engine. Raises what readers and planning raise."""
    cache = Path(settings.cache_dir).expanduser()
    with ExitStack() as undo:
        checkpoint = open_checkpoint(local.path, cache_directory=cache)
        undo.callback(checkpoint.close)
        program = build_program(checkpoint.config)
        backend = backends.choose(settings.engine.backend)
        facts = backends.facts(local.name, backend.value, program, checkpoint, settings.engine)
        sizes = backends.sizes_of(backend.value, hardware, program, settings.engine)
        memory = backends.memory_of(backend.value, hardware, program, settings.engine, sizes)
        plan = resolve(settings.engine, memory, facts, backend, sizes)
        undo.pop_all()
    return OpenedModel(
        name=local.name,
        path=local.path,
        cache=cache,
        checkpoint=checkpoint,
        program=program,
        plan=plan,
        policy=settings.scheduling,
        engine=settings.engine,
        streams=stream_limits(settings),
        recording=Recording.of(settings, local.name),
    )


def stream_limits(settings: Settings) -> StreamLimits:
    """Return what readers may leave unread, and for how long."""
    return StreamLimits(
        max_unread=settings.stream.max_unread_tokens,
        slow_reader_s=settings.stream.slow_reader_s,
    )


def load_model(
    opened: OpenedModel,
    clock: Clock,
    observer: Observer | None = None,
    advance: Callable[[float], None] = lambda done: None,
) -> LoadedModel:
    """Read the weights and build the engine. Closes `opened` on every way out.

    advance  hears which share of the weights is there, 0 to 1, while they are packed
    """
    plan, began_s = opened.plan, clock.now()
    try:
        host = open_host_pool(plan)
        with ThreadPoolExecutor(1, "headrace-text") as beside:  # a vocabulary takes as long to read as weights do
            text = beside.submit(_load_text, opened.checkpoint.text_files)

            def go_on(share: float) -> None:
                if text.done():
                    text.result()  # a tokenizer that cannot be read ends the packing of weights
                advance(share)

            executor = backends.open_executor(
                plan, opened.program, opened.checkpoint, cache_directory=opened.cache, host=host, advance=go_on
            )
            try:
                tokenizer, template, defaults = text.result()
            except BaseException:
                executor.shutdown()
                raise
        weights = "fp_" + fingerprint(opened.program, opened.checkpoint, plan.quantization.value)[:12]
        tiers = None if host is None else open_tiers(host, plan, _origin(opened), clock)
    finally:
        opened.close()
    for fault in find_template_faults(tokenizer, template) if template is not None else ():
        _log.warning("model '%s': %s", opened.name, fault)
    limits = SchedulerLimits(
        max_num_seqs=plan.max_num_seqs.value,
        max_step_tokens=plan.max_step_tokens.value,
        chunk_tokens=plan.chunk_tokens.value,
        chunk_grows=chunk_grows(plan.backend.value),
        max_context=plan.max_context.value,
        max_waiting=plan.max_waiting.value,
        prefix_cache=plan.prefix_cache.value,
        prefix_policy=plan.prefix_policy.value,
        policy=opened.policy,
        reach=plan.reach.value,
        widest_window=opened.program.widest_window(),
        plans_ahead=plan.async_scheduling.value,
    )
    scheduler = opened.recording.scheduler(executor.num_blocks, executor.block_size, limits, tiers)
    engine = Engine(scheduler, executor, clock, tiers)
    return LoadedModel(
        name=opened.name,
        path=opened.path,
        plan=plan,
        tokenizer=tokenizer,
        template=template,
        defaults=defaults,
        max_context=scheduler.max_context,
        vocab_size=opened.program.vocab_size,
        engine=AsyncEngine(
            engine,
            tokenizer,
            clock,
            vocab_size=opened.program.vocab_size,
            observer=observer,
            limits=opened.streams,
            policy=AttributionPolicy(opened.engine.step_shares),
            rent=RentTerms.of(
                RentPolicy(opened.engine.cache_rent), opened.engine.cache_memory_share, scheduler.num_blocks
            ),
            began_s=began_s,
        ),
        shares_prefixes=opened.engine.share_prefixes,
        fingerprint=weights,
        num_weights=sum(math.prod(spec.shape) for spec in opened.program.weights),
        settle=partial(backends.settle, executor),
    )


def _load_text(files: TextFiles) -> tuple[Tokenizer, ChatTemplate | None, SamplingParams]:
    """Return what turns words into tokens and back, and the model's own defaults."""
    tokenizer = load_tokenizer(files)
    return tokenizer, load_chat_template(files, special_tokens=tokenizer.special_tokens), generation_defaults(files)


def _origin(opened: OpenedModel) -> Origin:
    """Return what KV blocks of a model depend on."""
    return Origin(
        engine=opened.engine, program=opened.program, checkpoint=opened.checkpoint, cache_directory=opened.cache
    )


def served_model(model: LoadedModel, created: int) -> ServedModel:
    """Show a loaded model to the API."""
    return ServedModel(
        name=model.name,
        root=str(model.path),
        upstream=model.engine,
        tokenizer=model.tokenizer,
        template=model.template,
        max_context=model.max_context,
        created=created,
        defaults=model.defaults,
        abort=model.engine.abort,
        fingerprint=model.fingerprint,
        shares_prefixes=model.shares_prefixes,
        explain=model.engine.explain,
        check_room=model.engine.check_room,
    )
