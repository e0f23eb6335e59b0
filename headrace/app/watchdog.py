"""The watchdog: a thread that looks at every engine, and at the event loop, and says once when one stands still.

Owns: a judge for each engine and the last state that was logged. It runs beside the engine threads and the event loop,
so neither can keep it from looking; should both hang, it ends the process itself.
Invariant: one log line when an engine stalls, one when it goes on, one when the process gives up; one when a place for
KV blocks begins to hang, while it does. Without work a look is a few list operations, a few times a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable

import msgspec

from headrace.core.health import HealthState, ModelHealth
from headrace.core.protocols import Clock
from headrace.engine.health import EngineFacts, HealthJudge, HealthLimits

EXIT_ENGINE_DEAD = 1
_LONGEST_PAUSE_S = 5.0
_LAST_WORDS_S = 10.0  # for the event loop to tell the clients; then the process ends all the same
_log = logging.getLogger(__name__)


def leave(code: int) -> None:
    """End the process at once: some thread hangs and would hold up an orderly end."""
    logging.shutdown()
    os._exit(code)


class Watchdog:
    """Watches engines by name.

    on_stall  hears the name of an engine that has stopped making steps
    on_dead   hears, once and on the watchdog's thread, why the process has to end
    """

    def __init__(
        self,
        limits: HealthLimits,
        clock: Clock,
        *,
        on_stall: Callable[[str], None],
        on_dead: Callable[[str], None],
        leave: Callable[[int], None] = leave,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._on_stall = on_stall
        self._on_dead = on_dead
        self._leave = leave
        self._lock = threading.Lock()
        self._engines: dict[str, tuple[Callable[[], EngineFacts], HealthJudge]] = {}
        self._told: dict[str, HealthState] = {}
        self._silent: dict[str, frozenset[str]] = {}  # places of an engine that hang, as far as told
        self._dead_since_s: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_s: float | None = None  # when the loop was asked for a sign of life; None once it has given it
        self._loop_late_s: float | None = None  # since when it was seen not to give it

    def add(self, name: str, facts: Callable[[], EngineFacts]) -> None:
        """Watch an engine, in place of the one of that name."""
        with self._lock:
            self._engines[name] = (facts, HealthJudge(self._limits, self._clock))

    def healths(self) -> dict[str, ModelHealth]:
        """Judge every engine now; any thread."""
        with self._lock:
            return {name: judge.judge(facts()) for name, (facts, judge) in self._engines.items()}

    def health(self, name: str) -> ModelHealth:
        """Judge one engine now; any thread."""
        with self._lock:
            facts, judge = self._engines[name]
            return judge.judge(facts())

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look, at the loop as well."""
        self._loop = loop
        self._thread = threading.Thread(target=self._run, name="headrace-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Look once: log what has changed, and end what has been dead for too long."""
        for name, health in self.healths().items():
            self._look_at_places(name, health)
            if health.state is HealthState.DEGRADED and not health.stuck:
                health = msgspec.structs.replace(health, state=HealthState.READY)  # its places have been told of
            before = self._told.get(name, HealthState.READY)
            self._told[name] = health.state
            if health.state is before:
                continue
            if health.state is HealthState.STALLED:
                _log.error("model '%s' is stalled: %s; %s", name, health.reason, _named(health))
                self._on_stall(name)
            elif health.state is HealthState.DEGRADED:
                _log.warning("model '%s' is degraded: %s; %s", name, health.reason, _named(health))
            elif health.state is HealthState.DEAD:
                self._die(f"model '{name}': {health.reason}; {_named(health)}")
            elif before in (HealthState.STALLED, HealthState.DEGRADED):
                _log.info("model '%s' is getting on again", name)
        self._look_at_loop()
        if self._dead_since_s is not None and self._clock.now() - self._dead_since_s >= _LAST_WORDS_S:
            self._leave(EXIT_ENGINE_DEAD)

    def _look_at_places(self, name: str, health: ModelHealth) -> None:
        """Log places that have begun to hang; the I/O thread itself tells what failed, and when it works again."""
        silent = {place.name: place for place in health.places_down if place.silent_s}
        for place in silent.keys() - self._silent.get(name, frozenset()):
            _log.warning(
                "model '%s': KV tier '%s' has not answered for %.1f s; serving goes on without it",
                name,
                place,
                silent[place].silent_s,
            )
        self._silent[name] = frozenset(silent)

    def _run(self) -> None:
        limits = self._limits
        pause_s = min(
            _LONGEST_PAUSE_S, max(0.02, min(limits.stall_s, limits.stuck_s, limits.exit_s, limits.warm_up_s) / 4)
        )
        while not self._stop.wait(pause_s):
            self.look()

    def _look_at_loop(self) -> None:
        """Ask the event loop for a sign of life; one that stays away for too long ends the process."""
        now = self._clock.now()
        if self._asked_s is None:
            self._loop_late_s = None
            if self._loop is not None:
                self._asked_s = now
                with contextlib.suppress(RuntimeError):  # closed: the process is ending
                    self._loop.call_soon_threadsafe(self._note_loop)
            return
        silent_s = now - self._asked_s
        if silent_s < self._limits.stall_s:
            return
        if self._loop_late_s is None:
            self._loop_late_s = now
            _log.error("the event loop has not answered for %.1f s: nobody is being served", silent_s)
        # Seen so, and still so later: a process that was frozen itself gets another look.
        if now - self._loop_late_s >= self._limits.exit_s:
            self._die(f"the event loop has not answered for {silent_s:.0f} s")

    def _note_loop(self) -> None:
        self._asked_s = None

    def _die(self, reason: str) -> None:
        if self._dead_since_s is None:
            self._dead_since_s = self._clock.now()
            self._on_dead(reason)


def _named(health: ModelHealth) -> str:
    """Name the stuck requests for a log line."""
    if not health.stuck:
        return "no request is in it"
    named = ", ".join(f"{stuck.request_id} ({stuck.phase}, {stuck.idle_s:.1f} s)" for stuck in health.stuck)
    more = health.num_stuck - len(health.stuck)
    return f"stuck: {named}" + (f" and {more} more" if more > 0 else "")
