"""Command-line flags made from settings: name, type, help and default of each come from `core.settings`.

Owns nothing. Invariant: a setting has exactly one flag, `--name-with-dashes`, whose default is "not given", so that
file and environment keep their say.
"""

from __future__ import annotations

import argparse
from typing import get_args

from headrace.core.settings import SettingField, setting_fields

_POSITIONAL = {"models"}
_ALIASES = {"backend": ("--device",)}


def add_setting_flags(parser: argparse.ArgumentParser, sections: tuple[str | None, ...]) -> None:
    """Add a flag for every setting of `sections` (None: those outside any section)."""
    for section in sections:
        group = parser.add_argument_group(f"{section} settings" if section else "general settings")
        for leaf in setting_fields():
            if leaf.section == section and leaf.name not in _POSITIONAL:
                flags = (_flag(leaf), *_ALIASES.get(leaf.name, ()))
                group.add_argument(*flags, dest=leaf.key, help=_help(leaf), metavar=_metavar(leaf), default=None)


def given(args: argparse.Namespace) -> dict[str, object]:
    """Return the settings that the command line sets, by key."""
    keys = {leaf.key for leaf in setting_fields()}
    return {key: value for key, value in vars(args).items() if key in keys and value not in (None, [])}


def _flag(leaf: SettingField) -> str:
    return "--" + leaf.name.replace("_", "-")


def _help(leaf: SettingField) -> str:
    value = str(leaf.default).lower() if isinstance(leaf.default, bool) else leaf.default
    default = "" if value is None else f" (default: {value})"
    return (leaf.help + default).replace("%", "%%")


def _metavar(leaf: SettingField) -> str:
    choices = get_args(leaf.type)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    if leaf.type is bool:
        return "true|false"
    return leaf.name.rpartition("_")[2].upper()
