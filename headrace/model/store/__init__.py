"""Models by name: where they come from, how they get here, what is here already."""

from __future__ import annotations

from headrace.model.store.local import LocalModel
from headrace.model.store.partial import Progress
from headrace.model.store.source import ModelSource
from headrace.model.store.store import Store

__all__ = ["LocalModel", "ModelSource", "Progress", "Store"]
