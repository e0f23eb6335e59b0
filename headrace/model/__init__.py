"""Models on disk and as data: readers, configs, Programs."""

from __future__ import annotations

from headrace.model.build import build_program
from headrace.model.checkpoint import Checkpoint
from headrace.model.config import ModelConfig, RopeConfig
from headrace.model.open import open_checkpoint

__all__ = ["Checkpoint", "ModelConfig", "RopeConfig", "build_program", "open_checkpoint"]
