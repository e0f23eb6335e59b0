"""`headrace dashboards`: write what Grafana and Prometheus need to watch a server of this configuration."""

from __future__ import annotations

import argparse

from headrace.cli.configured import settings_from
from headrace.core.errors import ConfigError
from headrace.obs.dashboards import monitoring_files


def run(args: argparse.Namespace) -> int:
    """Write the files and say where they are. Raises ConfigError."""
    files = monitoring_files(settings_from(args))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (args.out / name).write_text(text, encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"cannot write to {args.out}: {err.strerror}; name another directory with --out") from err
    for name in files:
        print(args.out / name)
    return 0
