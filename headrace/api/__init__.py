"""The OpenAI wire over HTTP: bodies in, core requests down, deltas up, JSON or server-sent events out."""

from headrace.api.app import build_app
from headrace.api.served import ApiState, Models, ServedModel
from headrace.api.shared_key import SharedKey

__all__ = ["ApiState", "Models", "ServedModel", "SharedKey", "build_app"]
