"""The server process: engines, API and listening socket put together, from start-up to drain.

Owns the process's life: signals, the start-up timeline, the exit code. One event loop for the network, one thread per
engine. Ends with 0 after a drain (SIGTERM, SIGINT), with 1 when an engine died, so that a supervisor restarts it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
import uvloop

import headrace
from headrace.api import ApiState, Models, build_app
from headrace.app.hardware import detect
from headrace.app.listening import bind, check_exposure, url_of
from headrace.app.loading import LoadedModel, OpenedModel, load_model, open_model, served_model
from headrace.app.progress import Progress
from headrace.core.clock import MonotonicClock
from headrace.core.errors import ConfigError, EngineDead
from headrace.core.settings import Settings
from headrace.model.store import LocalModel
from headrace.obs import Metrics, Timeline, configure_logging

EXIT_DRAINED, EXIT_ENGINE_DEAD = 0, 1
_CLOSE_GRACE_S = 2  # for bytes of ended streams to reach their clients
_KEEP_ALIVE_S = 75  # longer than the pools of common clients, so that they close idle connections, not we
_log = logging.getLogger(__name__)


def serve(settings: Settings, find: Callable[[str], LocalModel]) -> int:
    """Serve until told to stop; return the exit code. Raises ConfigError before anything is served.

    find  brings a model here by its name, with a progress bar if need be
    """
    configure_logging(settings.server.log_level)
    check_exposure(settings.server)
    with bind(settings.server) as sock:
        server = _Server(settings, sock)
        server.load(find)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(server.run())


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process's life belongs to `_Server`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server:
    """One process's engines and its socket."""

    def __init__(self, settings: Settings, sock: socket.socket) -> None:
        self._settings = settings
        self._sock = sock
        self._clock = MonotonicClock()
        self._timeline = Timeline(self._clock)
        self._metrics = Metrics()
        self._models: list[LoadedModel] = []
        self._progress: list[Progress] = []
        self._stop = asyncio.Event()
        self._is_draining = False
        self._dead: str | None = None

    def load(self, find: Callable[[str], LocalModel]) -> None:
        """Open all models, then read their weights. Runs before the event loop, so that Ctrl-C ends it at once."""
        with self._timeline.phase("resolve"):
            hardware = detect()
            opened: list[OpenedModel] = []
            for name in self._settings.models:
                model = open_model(find(name), self._settings, hardware)
                if any(model.name == other.name for other in opened):
                    raise ConfigError(
                        f"two models are called '{model.name}'; requests could not tell them apart, drop one"
                    )
                opened.append(model)
                hardware = hardware.without(model.plan.weight_bytes.value + model.plan.kv_bytes.value)
        with self._timeline.phase("load"):
            for model in opened:
                observer = self._metrics.observer(model.name)
                loaded = load_model(model, self._clock, observer)
                self._metrics.add(observer, loaded.engine.snapshot)
                self._progress.append(Progress(loaded.name, loaded.engine.snapshot, self._clock))
                self._models.append(loaded)

    async def run(self) -> int:
        """Warm, serve, drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        with self._timeline.phase("warm"):
            for model in self._models:
                await model.engine.start()
        http = self._http_server()
        serving = asyncio.ensure_future(http.serve(sockets=[self._sock]))
        watches = [asyncio.ensure_future(self._watch(model)) for model in self._models]
        stopping = asyncio.ensure_future(self._stop.wait())
        while not http.started and not serving.done():
            await asyncio.sleep(0.001)
        self._timeline.finish()
        self._metrics.set_startup(self._timeline.phases_s)
        print(_invitation(url_of(self._sock), self._models[0], self._settings.server.api_key is not None), flush=True)
        await asyncio.wait((serving, stopping, *watches), return_when=asyncio.FIRST_COMPLETED)
        self._is_draining = True
        if self._dead is None:
            _log.info("draining for at most %.0f s", self._settings.server.drain_s)
        http.should_exit = True
        await asyncio.gather(*(model.engine.stop(self._drain_s()) for model in self._models))
        await serving
        for task in (stopping, *watches):
            task.cancel()
        await asyncio.gather(stopping, *watches, return_exceptions=True)
        return EXIT_DRAINED if self._dead is None else EXIT_ENGINE_DEAD

    def _http_server(self) -> _HttpServer:
        state = ApiState(
            models=Models(served_model(model, int(time.time())) for model in self._models),
            clock=self._clock,
            wall_s=time.time,
            unready=self._unready,
            dead=lambda: self._dead,
            render=self._metrics.render,
            version=headrace.__version__,
            max_body_bytes=self._settings.server.max_body_bytes,
            api_key=self._settings.server.api_key,
        )
        config = uvicorn.Config(
            build_app(state),
            http="httptools",
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(self._settings.server.drain_s) + _CLOSE_GRACE_S,
        )
        return _HttpServer(config)

    async def _watch(self, model: LoadedModel) -> None:
        """Wait for an engine to end by itself."""
        try:
            await model.engine.wait_dead()
        except EngineDead as err:
            self._dead = f"model '{model.name}': {err.message}"
            _log.critical("%s; the process ends", self._dead)

    def _unready(self) -> str | None:
        if self._is_draining:
            return "draining"
        return next((problem for progress in self._progress if (problem := progress.problem())), None)

    def _drain_s(self) -> float:
        return self._settings.server.drain_s if self._dead is None else 0.0


def _invitation(url: str, model: LoadedModel, wants_key: bool) -> str:
    """One line: where the server is, and a command that works."""
    if model.template is not None:
        path, rest = "chat/completions", '"messages":[{"role":"user","content":"Name the capital of France."}]'
    else:
        path, rest = "completions", '"prompt":"The capital of France is"'
    key = " -H 'Authorization: Bearer KEY'" if wants_key else ""
    body = f'{{"model":"{model.name}",{rest},"temperature":0,"max_tokens":32}}'
    return (
        f"Serving {model.name} at {url}/v1 · curl {url}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'"
    )
