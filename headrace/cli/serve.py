"""`headrace serve`: pull what is missing, load, serve until told to stop."""

from __future__ import annotations

import argparse
from functools import partial

from headrace.app.serving import serve
from headrace.cli.configured import settings_from
from headrace.cli.progress import pull_with_bar


def run(args: argparse.Namespace) -> int:
    """Serve; return 0 after a drain, 1 when an engine died."""
    settings = settings_from(args)
    return serve(settings, partial(pull_with_bar, settings))
