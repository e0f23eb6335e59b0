"""Models that are named but not here yet are pulled before anything else starts.

Owns nothing; the store owns the files. Progress is told through a callback so that the command line can draw it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.core.settings import Settings
from headrace.model.store import LocalModel, Progress, Store
from headrace.model.store.catalogue import catalogue


def store_of(settings: Settings) -> Store:
    """Return the store in the configured cache directory."""
    return Store(Path(settings.cache_dir).expanduser())


def ensure_pulled(settings: Settings, name: str, progress: Progress | None = None) -> LocalModel:
    """Return the model, downloaded first if need be. Raises UnknownModel or PullFailed."""
    store = store_of(settings)
    return store.pull(name) if progress is None else store.pull(name, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A model that is known or here. `path` is None for one that would have to be pulled."""

    name: str
    path: str | None
    size_bytes: int | None
    license: str | None
    source: str


def model_rows(settings: Settings) -> list[ModelRow]:
    """List the known models, then others that are here."""
    here = {local.name: local for local in store_of(settings).list()}
    known = [
        _row(here[name])
        if name in here
        else ModelRow(
            name=name, path=None, size_bytes=source.size_bytes, license=source.license, source="known by name"
        )
        for name, source in catalogue().items()
    ]
    return known + [_row(local) for name, local in here.items() if name not in catalogue()]


def _row(local: LocalModel) -> ModelRow:
    return ModelRow(
        name=local.name,
        path=str(local.path),
        size_bytes=local.size_bytes,
        license=local.license,
        source=local.source,
    )
