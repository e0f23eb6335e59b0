"""`headrace pull`: bring a model here and say under which terms and where it lies."""

from __future__ import annotations

import argparse

from headrace.cli.configured import settings_from
from headrace.cli.progress import pull_with_bar


def run(args: argparse.Namespace) -> int:
    """Pull one model; nothing is downloaded if it is here and whole."""
    model = pull_with_bar(settings_from(args), args.model)
    terms = model.license or "not stated by its source"
    print(f"{model.name}  {model.size_bytes / 1e6:,.0f} MB")
    print(f"license: {terms}" + (f"  {model.license_url}" if model.license_url else ""))
    print(f"path: {model.path}")
    return 0
