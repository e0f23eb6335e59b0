"""The OpenAI and Anthropic wires: bodies in, core requests down, deltas up, JSON or server-sent events out."""

from headrace.api.app import build_app
from headrace.api.recording import RecordingLimits
from headrace.api.recordings import Recordings
from headrace.api.served import Models, RemoteModel, ServedModel
from headrace.api.shared_key import SharedKey
from headrace.api.state import ApiState

__all__ = [
    "ApiState",
    "Models",
    "RecordingLimits",
    "Recordings",
    "RemoteModel",
    "ServedModel",
    "SharedKey",
    "build_app",
]
