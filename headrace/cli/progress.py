"""A progress bar for pulls, on standard error, drawn only while something really comes.

Owns one bar per pull; the store tells how far it is. Without a terminal nothing is drawn.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from headrace.app.pulling import ensure_pulled
from headrace.core.settings import Settings
from headrace.model.store import LocalModel
from headrace.model.store import Progress as Hearer


def pull_with_bar(settings: Settings, name: str, also: Hearer | None = None) -> LocalModel:
    """Bring a model here if it is not, showing how far it is, and telling `also`. Raises UnknownModel or PullFailed."""
    with _Bar(name, also) as bar:
        return ensure_pulled(settings, name, bar)


class _Bar:
    """Implements `model.store.Progress`."""

    def __init__(self, name: str, also: Hearer | None) -> None:
        self._also = also
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(name, start=True)
        self._is_shown = False

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._is_shown:
            self._progress.stop()

    def __call__(self, done_bytes: int, total_bytes: int | None, what: str, /) -> None:
        if not self._is_shown:
            self._is_shown = True
            self._progress.start()
        self._progress.update(self._task, completed=done_bytes, total=total_bytes, description=what)
        if self._also is not None:
            self._also(done_bytes, total_bytes, what)
