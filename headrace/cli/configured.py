"""Settings of a command: file, environment and flags merged, models taken from the positional arguments."""

from __future__ import annotations

import argparse

from headrace.cli.flags import given
from headrace.core.settings import Settings, load


def settings_from(args: argparse.Namespace) -> Settings:
    """Load the settings that apply to this call. Raises ConfigError."""
    overrides = given(args)
    models = overrides.get("models")
    if isinstance(models, str):
        overrides["models"] = [models]
    return load(args.config, overrides=overrides)
