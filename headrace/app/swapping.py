"""Other weights for a served name, while it goes on serving.

Owns: the one swap that may be going on. Network thread; files are read in a thread beside it.
The new weights get an engine and a KV pool of their own, so no KV of the old can ever be read; blocks on lower tiers
are filed under the weights they were computed with. New requests go to the new engine from the moment it is warm; those
that run end on the old one, within a limit, and then its memory is freed. Until then both have to fit: if they do not,
the swap is refused with the numbers and nothing has changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from headrace.api import Models
from headrace.app.beside import in_thread
from headrace.app.garbage import set_aside
from headrace.app.hardware import Hardware, detect
from headrace.app.loading import LoadedModel, OpenedModel, load_model, open_model, served_model
from headrace.app.watchdog import Watchdog
from headrace.core.cuts import Cut
from headrace.core.errors import ConfigError, EngineDead, SwapRefused, UnknownModel
from headrace.core.protocols import Clock
from headrace.core.settings import Settings
from headrace.core.swap import SwapReply
from headrace.model.store import LocalModel, Progress
from headrace.obs import Metrics

_LATE_S = 2.0  # for requests that found the old weights and have not reached them yet
_STOP_S = 10.0  # for a step in flight; an engine that takes longer hangs, and keeps its memory
_log = logging.getLogger(__name__)


class Swapper:
    """Swaps the weights of local models.

    engines  the engines of the process, which it keeps up to date
    watch    looks after an engine from now on
    """

    def __init__(
        self,
        settings: Settings,
        find: Callable[[str, Progress], LocalModel],
        clock: Clock,
        *,
        models: Models,
        metrics: Metrics,
        watchdog: Watchdog,
        engines: list[LoadedModel],
        watch: Callable[[LoadedModel], None],
        detect: Callable[[], Hardware] = detect,
    ) -> None:
        self._settings = settings
        self._find = find
        self._clock = clock
        self._models = models
        self._metrics = metrics
        self._watchdog = watchdog
        self._engines = engines
        self._watch = watch
        self._detect = detect
        self._busy_with: str | None = None
        self._num_swaps = 0
        self._retiring: set[asyncio.Task[None]] = set()

    async def swap(self, name: str, source: str, drain_s: float | None) -> SwapReply:
        """Load `source`, serve it under `name`, let the old weights go. Returns once new requests get the new weights.

        drain_s  what running requests get to finish; None: server.drain_s
        Raises UnknownModel, or SwapRefused with the reason; then everything is as before.
        """
        old = next((model for model in self._engines if model.name == name and not model.is_retired), None)
        if old is None:
            raise UnknownModel(f"model '{name}' is not served from weights here, so they cannot be swapped")
        if self._busy_with is not None:
            raise SwapRefused(f"the weights of '{self._busy_with}' are being swapped; try again when that is done")
        self._busy_with = name
        try:
            return await self._swap(old, source, self._settings.server.drain_s if drain_s is None else drain_s)
        except (ConfigError, UnknownModel, EngineDead) as err:
            raise SwapRefused(f"'{name}' keeps its weights: {err.message}") from err
        finally:
            self._busy_with = None

    async def _swap(self, old: LoadedModel, source: str, drain_s: float) -> SwapReply:
        began = self._clock.now()
        observer = self._metrics.observer_of(old.name)
        opened = await in_thread(partial(self._open, old.name, source))
        new = await in_thread(partial(load_model, opened, self._clock, observer))
        try:
            await new.engine.start()
        except BaseException:
            await new.engine.stop()
            raise
        before = self._metrics.snapshot_of(old.name)
        self._metrics.succeed(old.name, new.engine.snapshot, before)
        self._watchdog.add(new.name, new.engine.facts)
        self._engines[self._engines.index(old)] = new
        retired = replace(old, is_retired=True)
        self._engines.append(retired)
        self._watch(new)
        self._models.publish(served_model(new, int(time.time())))
        snapshot = old.engine.snapshot()
        reply = SwapReply(
            model=new.name,
            source=source,
            system_fingerprint=new.fingerprint,
            previous_fingerprint=old.fingerprint,
            num_finishing=snapshot.num_running + snapshot.num_waiting,
            seconds=round(self._clock.now() - began, 3),
        )
        _log.info("'%s' has new weights: %s in place of %s", new.name, new.fingerprint, old.fingerprint)
        task = asyncio.ensure_future(self._retire(retired, new, drain_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        task.add_done_callback(lambda _: set_aside())  # with the task its hold on the old weights has gone
        return reply

    def _open(self, name: str, source: str) -> OpenedModel:
        local = self._find(source, lambda done, total, what: None)
        opened = open_model(local, self._settings, self._detect())
        self._num_swaps += 1
        return replace(opened, name=name, recording=opened.recording.numbered(self._num_swaps))

    async def _retire(self, old: LoadedModel, new: LoadedModel, drain_s: float) -> None:
        """Let the old engine finish what it has, and free its memory."""
        late_s = min(_LATE_S, drain_s)
        await asyncio.sleep(late_s)
        try:
            await asyncio.wait_for(old.engine.stop(drain_s - late_s, cut=Cut.SWAP, had_s=late_s), drain_s + _STOP_S)
        except TimeoutError:
            _log.error("the old engine of '%s' does not end; its memory is not freed", old.name)
            old.engine.give_up("the weights were swapped and the old engine hangs")
            return
        self._engines.remove(old)
        last = old.engine.snapshot()
        self._metrics.succeed(new.name, new.engine.snapshot, lambda: last)
        _log.info("the old weights of '%s' (%s) are gone", old.name, old.fingerprint)
