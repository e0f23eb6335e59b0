"""The OpenAI and Anthropic wires: bodies in, core requests down, deltas up, JSON or server-sent events out."""

from headrace.api.app import build_app
from headrace.api.calls import Calls
from headrace.api.ladder import Ladders
from headrace.api.openai_types import PrefixBody
from headrace.api.prefixes import pin_prefix
from headrace.api.recording import RecordingLimits
from headrace.api.recordings import Recordings
from headrace.api.served import Models, RemoteModel, ServedModel
from headrace.api.shared_key import SharedKey
from headrace.api.sse import ON_DISCONNECT
from headrace.api.state import ApiState

__all__ = [
    "ON_DISCONNECT",
    "ApiState",
    "Calls",
    "Ladders",
    "Models",
    "PrefixBody",
    "RecordingLimits",
    "Recordings",
    "RemoteModel",
    "ServedModel",
    "SharedKey",
    "build_app",
    "pin_prefix",
]
