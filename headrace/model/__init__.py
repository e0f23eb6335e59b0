"""Models on disk and as data: readers, configs, Programs."""

from __future__ import annotations

from headrace.model.checkpoint import Checkpoint
from headrace.model.config import ModelConfig, RopeConfig
from headrace.model.open import open_checkpoint

__all__ = ["Checkpoint", "ModelConfig", "RopeConfig", "open_checkpoint"]
