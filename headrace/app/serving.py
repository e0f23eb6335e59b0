"""The server process: engines, API and listening socket put together, from start-up to drain.

Owns the process's life: signals, the start-up timeline, the exit code. One event loop for the network, one thread per
engine, one for the watchdog. The socket answers from the start: models are loaded by a thread beside the loop and
served one by one as they become ready.
Ends with 0 after a drain (SIGTERM, SIGINT), with 1 when an engine died or hangs, so that a supervisor restarts it, with
130 when it was interrupted before it was ready.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import uvloop

import headrace
from headrace.api import (
    ApiState,
    Calls,
    Ladders,
    Models,
    PrefixBody,
    RecordingLimits,
    Recordings,
    RemoteModel,
    ServedModel,
    SharedKey,
    build_app,
)
from headrace.app import backends
from headrace.app.beside import in_thread
from headrace.app.connections import CLOSE_GRACE_S, HttpServer, check_tls, http_server
from headrace.app.garbage import keep_no_list_of_generators, set_aside
from headrace.app.hardware import detect
from headrace.app.listening import bind, check_exposure, url_of
from headrace.app.loading import LoadedModel, OpenedModel, load_model, open_model, served_model, stream_limits
from headrace.app.plan import Plan
from headrace.app.remote import RemoteSide
from headrace.app.status import ServerStatus
from headrace.app.swapping import Swapper
from headrace.app.telemetry import open_tracer
from headrace.app.warming import read_warm_file, warm_model
from headrace.app.watchdog import EXIT_ENGINE_DEAD, Watchdog, leave
from headrace.core.caller import nobody_hears
from headrace.core.clock import MonotonicClock
from headrace.core.delta import Usage
from headrace.core.errors import ConfigError, EngineDead
from headrace.core.protocols import Clock, Upstream
from headrace.core.request import RequestId
from headrace.core.settings import HealthSettings, ResumeSettings, Settings
from headrace.econ import EngineBuild, machine_rate
from headrace.engine.health import HealthLimits
from headrace.gateway import Gateway
from headrace.model.store import LocalModel, Progress
from headrace.obs import Metrics, ModelMetrics, Timeline, configure_logging

T = TypeVar("T")
Find = Callable[[str, Progress], LocalModel]  # brings a model here by its name and says how far it is

EXIT_DRAINED, EXIT_INTERRUPTED = 0, 130
_SWITCH_S = 0.0005  # how long another thread keeps the interpreter from the network; 5 ms otherwise
_log = logging.getLogger(__name__)


def serve(settings: Settings, find: Find) -> int:
    """Serve until told to stop; return the exit code. Raises ConfigError when the models cannot be served."""
    configure_logging(settings.server.log_level, log_format=settings.server.log_format)
    check_tls(settings.server)
    has_keys = asyncio.run(_has_keys(settings))
    check_exposure(settings.server, has_database=settings.database is not None, has_keys=has_keys)
    if not has_keys and settings.server.api_key is None:
        _log.info("no keys are configured: only this machine is served, and everyone on it may call")
    sys.setswitchinterval(_SWITCH_S)
    with bind(settings.server, slow_reader_s=stream_limits(settings).slow_reader_s) as sock:
        server = _Server(settings, sock, find)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(server.run())
    if server.has_hung_thread:
        leave(code)
    return code


async def _has_keys(settings: Settings) -> bool:
    """Look into the database before anything is loaded: what is wrong with it is told at once."""
    gateway = _gateway(settings, MonotonicClock())
    if gateway is None:
        return False
    try:
        await gateway.look()
        return gateway.has_keys
    finally:
        await gateway.close()


def _same(upstream: Upstream) -> Upstream:
    return upstream


def _gateway(settings: Settings, clock: Clock) -> Gateway | None:
    return None if settings.database is None else Gateway(settings.database, settings.gateway, clock, settings.audit)


class _Server:
    """One process's engines and its socket."""

    def __init__(self, settings: Settings, sock: socket.socket, find: Find) -> None:
        self.has_hung_thread = False
        self._settings = settings
        self._sock = sock
        self._find = find
        self._clock = MonotonicClock()
        self._gateway = _gateway(settings, self._clock)
        self._timeline = Timeline(self._clock)
        self._ladders = Ladders(settings.degrade, self._clock)
        self._metrics = Metrics(settings.slo)
        self._metrics.door.degraded = lambda: self._ladders.counts
        if settings.gateway.usd_per_hour is not None:
            self._metrics.set_rate(machine_rate(settings.gateway.usd_per_hour).nano_per_hour)
        self._engines: list[LoadedModel] = []
        self._tracer = open_tracer(settings.telemetry, self._clock)
        self._watchdog = Watchdog(
            _limits(settings.health), self._clock, on_stall=self._metrics.count_stall, on_dead=self._hear_dead
        )
        self._status = ServerStatus(self._clock, self._watchdog, len(settings.models))
        self._models = Models(
            loading=self._status.loading, front=_same if self._gateway is None else self._gateway.front
        )
        self._calls = Calls()
        self._recordings = Recordings(_resume_limits(settings.resume))
        self._remote = RemoteSide(
            settings, self._clock, self._metrics, None if self._gateway is None else self._gateway.price_of
        )
        self._watches: list[asyncio.Future[None]] = []
        self._swapper = Swapper(
            settings,
            find,
            self._clock,
            models=self._models,
            metrics=self._metrics,
            watchdog=self._watchdog,
            engines=self._engines,
            watch=self._look_after,
        )
        self._stop = asyncio.Event()
        self._signal: signal.Signals | None = None

    async def run(self) -> int:
        """Serve, and send the last traces."""
        keep_no_list_of_generators()
        try:
            return await self._run()
        finally:
            if self._tracer is not None:
                await in_thread(self._tracer.close)

    async def _run(self) -> int:
        """Open the accounts, serve, close them."""
        if self._gateway is None:
            return await self._serve()
        try:
            await self._gateway.open()
            self._metrics.add_accounts(self._gateway.stats)
            self._metrics.add_audit(self._gateway.audit_stats)
            return await self._serve()
        finally:
            await self._gateway.close()

    async def _serve(self) -> int:
        """Listen, load, serve, drain."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ask_to_stop, number)
        http = self._http_server()
        serving = asyncio.ensure_future(http.serve(sockets=[self._sock]))
        starting = asyncio.ensure_future(self._start(http))
        stopping = asyncio.ensure_future(self._stop.wait())
        self._watchdog.start(self._loop)
        try:
            await asyncio.wait((serving, starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            code = await self._end(http, is_started=starting.done())
        finally:
            http.should_exit = True
            await serving
            stopping.cancel()
            for task in (starting, *self._watches):
                task.cancel()
            await asyncio.gather(starting, stopping, *self._watches, return_exceptions=True)
            self._watchdog.stop()
            await self._remote.close()
        return code

    async def _start(self, http: HttpServer) -> None:
        """Load and warm all models, each served as soon as it can answer."""
        for remote in self._remote.models(int(time.time())):
            self._models.publish(remote)
        wanted = read_warm_file(Path(path).expanduser()) if (path := self._settings.server.warm) is not None else []
        opened = await in_thread(self._open)
        self._ladders.check([*(model.name for model in self._models), *(model.name for model in opened)])
        for model in opened:
            self._status.enter("load", model.name)
            with self._timeline.phase("load"):
                observer = self._metrics.observer(model.name)
                loaded = await in_thread(partial(load_model, model, self._clock, observer, self._status.advance))
            self._engines.append(loaded)
            self._watchdog.add(loaded.name, loaded.engine.facts)
            self._status.enter("warm", model.name)
            with self._timeline.phase("warm"):
                await loaded.engine.start()
            await self._keep_prefixes(loaded, wanted, is_first=model is opened[0])
            self._publish(loaded, observer)
        while not http.started:
            await asyncio.sleep(0.001)
        set_aside()
        self._timeline.finish()
        self._metrics.set_startup(self._timeline.phases_s)
        self._status.started()
        self._warn_of_unknown(self._settings.slo.by_model, "slo.by_model")
        wants_key = self._settings.server.api_key is not None or (self._gateway is not None and self._gateway.has_keys)
        url = url_of(self._sock, has_tls=self._settings.server.tls_cert is not None)
        print(_invitation(url, next(iter(self._models)), wants_key), flush=True)

    def _warn_of_unknown(self, names: Iterable[str], setting: str) -> None:
        """Say which names of a setting are served by nobody here."""
        served = {model.name for model in self._models}
        for name in set(names) - served:
            _log.warning("%s names '%s', which is not served; it has no effect", setting, name)

    async def _keep_prefixes(self, loaded: LoadedModel, wanted: list[PrefixBody], *, is_first: bool) -> None:
        """Compute what the warm file wants of a model, before anybody can ask for it."""
        if wanted:
            with self._timeline.phase("prefixes"):
                served = served_model(loaded, int(time.time()))
                count = await warm_model(served, wanted, self._clock, is_first=is_first)
            _log.info("model '%s': %d prefixes are kept", loaded.name, count)

    def _open(self) -> list[OpenedModel]:
        """Find, map and plan all models, in the order of the settings, before any weight is read."""
        opened: list[OpenedModel] = []
        with self._timeline.phase("resolve"):
            hardware = detect()
            for name in self._settings.models:
                self._status.enter("resolve", name)
                model = open_model(self._find(name, self._hear_pull), self._settings, hardware)
                self._remote.check_name(model.name)
                if any(model.name == other.name for other in opened):
                    raise ConfigError(
                        f"two models are called '{model.name}'; requests could not tell them apart, drop one"
                    )
                opened.append(model)
                hardware = hardware.without(model.plan.weight_bytes.value + model.plan.kv_bytes.value)
        return opened

    def _publish(self, loaded: LoadedModel, observer: ModelMetrics) -> None:
        """Let requests reach a warm model, and monitors see it."""
        self._metrics.add(observer, loaded.engine.snapshot)
        if loaded.plan.backend.value == "cuda":
            self._metrics.watch_kernels(backends.failed_kernels)
        self._metrics.add_health(loaded.name, partial(self._watchdog.health, loaded.name))
        self._look_after(loaded)
        self._models.publish(served_model(loaded, int(time.time())))
        self._status.count_ready()

    async def _end(self, http: HttpServer, *, is_started: bool) -> int:
        """Let running answers end, stop the engines, and return the exit code."""
        self._status.drain()
        self._recordings.drop_unread()
        drain_s = self._settings.server.drain_s
        if self._status.dead is not None:
            http.config.timeout_graceful_shutdown = CLOSE_GRACE_S
            http.should_exit = True
            await asyncio.gather(*(self._stop_dead(model) for model in self._engines))
            return EXIT_ENGINE_DEAD
        if self._engines:
            _log.info("draining for at most %.0f s", drain_s)
        # It goes on listening: who comes meanwhile is told when to try again, and a lost stream can be gone on with.
        await asyncio.gather(self._calls.drain(drain_s), *(model.engine.stop(drain_s) for model in self._engines))
        http.config.timeout_graceful_shutdown = CLOSE_GRACE_S
        http.should_exit = True
        if is_started:
            return EXIT_DRAINED if self._status.dead is None else EXIT_ENGINE_DEAD
        self.has_hung_thread = True  # the one that loads cannot be called back
        return EXIT_INTERRUPTED if self._signal is signal.SIGINT else EXIT_DRAINED

    async def _stop_dead(self, model: LoadedModel) -> None:
        """Stop an engine of a process that has to end; one whose thread hangs is left behind, its requests are not."""
        try:
            await asyncio.wait_for(model.engine.stop(), CLOSE_GRACE_S)
        except TimeoutError:
            self.has_hung_thread = True
            model.engine.give_up(self._status.dead or "the engine hangs")

    def _look_after(self, model: LoadedModel) -> None:
        if self._gateway is not None:
            model.engine.bill_to(self._gateway.add_engine(model.name, model.engine.time, _build_of(model)))
        self._watches.append(asyncio.ensure_future(self._watch(model)))

    async def _watch(self, model: LoadedModel) -> None:
        """Wait for an engine to end by itself."""
        try:
            await model.engine.wait_dead()
        except EngineDead as err:
            self._die(f"model '{model.name}': {err.message}")

    def _hear_dead(self, reason: str) -> None:
        """Hear from the watchdog's thread that the process has to end."""
        self._loop.call_soon_threadsafe(self._die, reason)

    def _die(self, reason: str) -> None:
        if self._status.dead is None:
            self._status.die(reason)
            _log.critical("%s; the process ends", reason)
        self._stop.set()

    def _hear_pull(self, done_bytes: int, total_bytes: int | None, what: str, /) -> None:
        """Hear how far a pull is, from the loading thread."""
        self._status.enter("pull", what)
        if total_bytes:
            self._status.advance(done_bytes / total_bytes)

    def _ask_to_stop(self, number: signal.Signals) -> None:
        self._signal = number
        self._stop.set()

    def _http_server(self) -> HttpServer:
        state = ApiState(
            models=self._models,
            clock=self._clock,
            wall_s=time.time,
            health=self._status.health,
            render=self._metrics.render,
            version=headrace.__version__,
            max_body_bytes=self._settings.server.max_body_bytes,
            gatekeeper=SharedKey(self._settings.server.api_key) if self._gateway is None else self._gateway.gatekeeper,
            door=self._metrics.door,
            ladders=self._ladders,
            auditor=None if self._gateway is None else self._gateway.auditor,
            admin=() if self._gateway is None else self._gateway.admin_routes(headrace.__version__),
            calls=self._calls,
            recordings=self._recordings,
            upstreams=self._remote.status,
            tracer=self._tracer,
            swap=self._swapper.swap,
            cors_origins=self._settings.server.cors_origins,
            note_refused=nobody_hears if self._gateway is None else self._gateway.note_refused,
            settled=_nothing_settled if self._gateway is None else self._gateway.settled,
        )
        return http_server(build_app(state), self._settings.server)


def _nothing_settled(key_id: str, request_id: RequestId) -> Usage | None:
    return None


def _build_of(model: LoadedModel) -> EngineBuild:
    """Return how an engine was built, for the ledger."""
    plan = model.plan
    return EngineBuild(
        backend=plan.backend.value,
        weights=plan.quantization.value,
        kv_dtype=_kv_dtype(plan),
        machine=detect().cpu,
        threads=plan.threads.value,
        num_weights=model.num_weights,
        weight_bytes=plan.weight_bytes.value,
        kv_bytes=plan.kv_bytes.value,
        kv_tokens=plan.num_blocks.value * plan.block_size.value,
        max_num_seqs=plan.max_num_seqs.value,
    )


def _kv_dtype(plan: Plan) -> str:
    """Return how K and V are kept, `auto` resolved."""
    kept = plan.kv_dtype.value
    return kept if kept != "auto" else "fp32" if plan.backend.value == "reference" else "bf16"


def _limits(health: HealthSettings) -> HealthLimits:
    return HealthLimits(
        stall_s=health.stall_s, stuck_s=health.stuck_s, exit_s=health.stall_exit_s, warm_up_s=health.warm_up_s
    )


def _resume_limits(resume: ResumeSettings) -> RecordingLimits:
    return RecordingLimits(
        max_grace_s=resume.max_grace_s,
        max_events=resume.max_events,
        max_bytes=resume.max_bytes,
        max_streams=resume.max_streams,
        keep_keyed_s=resume.idempotency_s,
    )


def _invitation(url: str, model: ServedModel | RemoteModel, wants_key: bool) -> str:
    """One line: where the server is, and a command that works."""
    if isinstance(model, RemoteModel) or model.template is not None:
        path, rest = "chat/completions", '"messages":[{"role":"user","content":"Name the capital of France."}]'
    else:
        path, rest = "completions", '"prompt":"The capital of France is"'
    key = " -H 'Authorization: Bearer KEY'" if wants_key else ""
    body = f'{{"model":"{model.name}",{rest},"temperature":0,"max_tokens":32}}'
    return (
        f"Serving {model.name} at {url}/v1 · curl {url}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'"
    )
