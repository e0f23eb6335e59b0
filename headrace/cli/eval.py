"""`headrace eval kl|ppl`: how far a configuration is from the same weights in fp32, on a text.

Owns the table and the JSON of a comparison; the figures are `headrace.evals`'. Both sides score the same tokens.
"""

from __future__ import annotations

import argparse
import sys

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from headrace.app.scoring import open_scorer
from headrace.cli.configured import settings_from
from headrace.cli.progress import pull_with_bar
from headrace.cli.tables import print_table
from headrace.core.settings import Settings
from headrace.evals import LEAST_BLOCKS, Comparison, Interval, compare_scorers, default_text


def run(args: argparse.Namespace) -> int:
    """Score the text under both configurations and print the comparison."""
    settings = settings_from(args)
    pull_with_bar(settings, settings.first_model)
    text = args.text.read_text(encoding="utf-8") if args.text is not None else default_text()
    comparison, backend = _compare(settings, text, args.max_tokens)
    weights, kv = settings.engine.quantization, settings.engine.kv_dtype
    if args.json:
        facts = {"model": settings.first_model, "backend": backend, "quantization": weights, "kv_dtype": kv}
        facts["against"] = args.against
        report = {**facts, **msgspec.to_builtins(comparison)}
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return 0
    how = f"{settings.first_model} on {backend}, quantization {weights}, KV {kv}"
    title = f"{how}, against fp32; {comparison.num_tokens:,} tokens"
    table = Table(title=title, title_justify="left")
    for column in ("", "value", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in _rows(args.measure, comparison):
        if isinstance(value, Interval):
            table.add_row(name, f"{value.value:.5f}", _spread(value))
        else:
            table.add_row(name, f"{value:.5f}", "")
    print_table(table)
    return 0


def _spread(found: Interval) -> str:
    """Return an interval in words."""
    if found.low is None or found.high is None:
        return f"fewer than {LEAST_BLOCKS} chunks"
    return f"{found.low:.5f} … {found.high:.5f}"


def _compare(settings: Settings, text: str, max_tokens: int) -> tuple[Comparison, str]:
    exact = msgspec.structs.replace(settings.engine, backend="reference", quantization="auto", kv_dtype="auto")
    with (
        open_scorer(msgspec.structs.replace(settings, engine=exact)) as base,
        open_scorer(settings) as test,
        Progress(transient=True, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("scoring")
        found = compare_scorers(
            base,
            test,
            base.tokenizer.encode(text, add_special=False)[:max_tokens],
            bos_id=base.tokenizer.bos_id,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        return found, test.backend


def _rows(measure: str, found: Comparison) -> list[tuple[str, Interval | float]]:
    if measure == "kl":
        return [
            ("mean KL(fp32 ‖ this), nats", found.mean_kl),
            ("KL, 99.9 % of tokens below", found.kl_p999),
            ("same top token", found.same_top),
            ("change of the true token's p, RMS", found.delta_p_rms),
            ("perplexity ratio", found.ppl_ratio),
        ]
    return [
        ("perplexity, fp32", found.ppl_base),
        ("perplexity, this", found.ppl_test),
        ("ratio", found.ppl_ratio),
    ]
