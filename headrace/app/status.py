"""What the server says of itself: how far its start is, whether it drains, why it ends, and its engines' health.

Owns the phase of the start. Written by `app.serving` and the loading thread, one plain assignment at a time; read by
the health endpoints and by requests that come too early.
"""

from __future__ import annotations

from headrace.app.watchdog import Watchdog
from headrace.core.health import HealthState, ServerHealth, StartProgress
from headrace.core.protocols import Clock

_SEVERITY = list(HealthState)


class ServerStatus:
    """The server's own part of its health."""

    def __init__(self, clock: Clock, watchdog: Watchdog, num_models: int) -> None:
        self._clock = clock
        self._watchdog = watchdog
        self._num_models = num_models
        self._start_s = clock.now()
        self._phase: tuple[str, str | None] = ("resolve", None)
        self._done: float | None = None
        self._num_ready = 0
        self._is_started = False
        self._is_draining = False
        self.dead: str | None = None  # why the process is about to end with 1

    def enter(self, phase: str, model: str | None = None) -> None:
        """Say what the start does now."""
        self._done = None
        self._phase = (phase, model)

    def advance(self, done: float) -> None:
        """Say which share of the phase is done, 0 to 1."""
        self._done = done

    def count_ready(self) -> None:
        """Count one more model that answers."""
        self._num_ready += 1

    def started(self) -> None:
        """End the start."""
        self._is_started = True

    def drain(self) -> None:
        """Say that the process was asked to stop."""
        self._is_draining = True

    def die(self, reason: str) -> None:
        """Say that the process ends because of a failure; the first reason stands."""
        self.dead = self.dead or reason

    def loading(self) -> str | None:
        """Say how far the start is; None once all models are there."""
        if self._is_started:
            return None
        phase, model = self._phase
        done = "" if self._done is None else f" {self._done:.0%}"
        return f"the server is starting ({phase}{done}{'' if model is None else f' of {model}'})"

    def health(self) -> ServerHealth:
        """Return the whole server's health: the worst of what is known."""
        models = self._watchdog.healths()
        if self.dead is not None:
            return ServerHealth(state=HealthState.DEAD, reason=self.dead, models=models)
        worst = max(models, key=lambda name: _SEVERITY.index(models[name].state), default=None)
        if worst is not None and models[worst].state in (HealthState.DEAD, HealthState.STALLED):
            return ServerHealth(state=models[worst].state, reason=f"{worst}: {models[worst].reason}", models=models)
        if self._is_draining:
            return ServerHealth(state=HealthState.DRAINING, reason="the server was asked to stop", models=models)
        if not self._is_started:
            return ServerHealth(
                state=HealthState.STARTING, reason=self.loading(), start=self._progress(), models=models
            )
        if worst is None or models[worst].state is HealthState.READY:
            return ServerHealth(state=HealthState.READY, models=models)
        return ServerHealth(state=models[worst].state, reason=f"{worst}: {models[worst].reason}", models=models)

    def _progress(self) -> StartProgress:
        phase, model = self._phase
        return StartProgress(
            phase=phase,
            model=model,
            done=None if self._done is None else round(self._done, 4),
            models_ready=self._num_ready,
            models=self._num_models,
            elapsed_s=round(self._clock.now() - self._start_s, 3),
        )
