"""The engine loop, the streams it feeds, and its face on the event loop."""

from headrace.engine.async_engine import AsyncEngine, StreamLimits
from headrace.engine.engine import Engine, StepReport

__all__ = ["AsyncEngine", "Engine", "StepReport", "StreamLimits"]
