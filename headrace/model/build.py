"""`build_program`: from a config to the Program of its family. The one list of the families that are served.

A new family is a file in `families/` with `build(config)`, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.errors import UnsupportedModel
from headrace.model.config import ModelConfig
from headrace.model.families import gemma3, llama, qwen2, qwen3
from headrace.model.program import Program

_FAMILIES: dict[str, Callable[[ModelConfig], Program]] = {
    "gemma3": gemma3.build,
    "llama": llama.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
}


def build_program(config: ModelConfig) -> Program:
    """Return the checked Program of a model.

    Raises UnsupportedModel for a family or a shape that no family file writes.
    """
    build = _FAMILIES.get(config.family)
    if build is None:
        raise UnsupportedModel(f"model family '{config.family}' is not served; served are {', '.join(_FAMILIES)}")
    _check_heads(config)
    return build(config)


def _check_heads(config: ModelConfig) -> None:
    """Raise UnsupportedModel when head counts or layer lists cannot be a model of this kind."""
    if config.num_kv_heads < 1 or config.num_heads % config.num_kv_heads:
        raise UnsupportedModel(
            f"{config.num_heads} query heads do not divide over {config.num_kv_heads} key-value heads; check the config"
        )
    rotary = config.rope.rotary_dim or config.head_dim
    if rotary % 2 or rotary > config.head_dim:
        raise UnsupportedModel(
            f"a rotation of {rotary} channels does not fit heads of {config.head_dim}; it must be even and no larger"
        )
    if config.windowed_layers and len(config.windowed_layers) != config.num_layers:
        raise UnsupportedModel(
            f"the config lists {len(config.windowed_layers)} layer kinds for {config.num_layers} layers; "
            "the numbers must match"
        )
