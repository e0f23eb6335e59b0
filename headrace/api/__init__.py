"""The OpenAI wire over HTTP: bodies in, core requests down, deltas up, JSON or server-sent events out."""

from headrace.api.app import build_app
from headrace.api.served import ApiState, Models, ServedModel

__all__ = ["ApiState", "Models", "ServedModel", "build_app"]
