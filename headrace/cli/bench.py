"""`headrace bench offline|steps|http|peers`: a configuration, its steps, a running server, and other engines beside it.

Owns how results are shown; measuring is in `headrace.bench`. Progress goes to standard error, results to standard
output. Exit code 1 when requests under load failed.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from contextlib import closing
from time import process_time

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from headrace.app import LLM
from headrace.app.hardware import detect
from headrace.app.llm import SamplingParams
from headrace.app.loading import open_model
from headrace.bench.engine_use import EngineUse, engine_use, read_times
from headrace.bench.load import LoadPlan, run_load
from headrace.bench.local import LocalGenerator
from headrace.bench.metrics import Distribution, LoadReport
from headrace.bench.offline import OfflineReport, OfflineShape, Spread, run_offline
from headrace.bench.process import peak_memory_bytes, seconds_since_start
from headrace.bench.random_models import with_random_model
from headrace.bench.step_times import measure_model
from headrace.bench.token_prompts import TokenPrompts
from headrace.bench.utilization import Utilization, utilization
from headrace.cli.configured import settings_from
from headrace.cli.progress import pull_with_bar
from headrace.cli.remote import RemoteChat
from headrace.cli.tables import print_table


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was asked for."""
    match args.benchmark:
        case "offline":
            return _offline(args)
        case "http":
            return _http(args)
        case "steps":
            return _steps(args)
        case _:
            from headrace.bench.peers.report import run_peers

            return run_peers(
                settings_from(args), args.peers, args.out, rounds=args.rounds, http_rounds=args.http_rounds
            )


def _offline(args: argparse.Namespace) -> int:
    asked = settings_from(args)
    settings = with_random_model(asked)
    local = pull_with_bar(settings, settings.first_model)
    shape = OfflineShape(prompt_tokens=args.prompt_len, output_tokens=args.output_len, batch=args.batch)
    with LLM(settings=settings) as llm, Progress(transient=True, console=Console(stderr=True)) as progress:
        generator, prompts = LocalGenerator(llm), TokenPrompts(llm.prompt_vocab_size)
        generator.generate_tokens(prompts.batch(1, 1, 0), 1)
        first_token_s = seconds_since_start()
        llm.settle()
        task = progress.add_task("measuring")
        report = run_offline(
            generator,
            shape,
            prompts,
            rounds=args.rounds,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        backend, kv_bytes = llm.plan.backend.value, llm.plan.kv_bytes.value
    peak = peak_memory_bytes()
    used = None
    if backend == "native":
        with closing(open_model(local, settings, detect())) as opened:
            used = utilization(opened, report)
    if args.json:
        facts = {"model": asked.first_model, "backend": backend, "quantization": settings.engine.quantization}
        process = {"first_token_s": first_token_s, "peak_memory_bytes": peak, "kv_bytes": kv_bytes, "utilization": used}
        _write_json({**facts, **msgspec.to_builtins(report), **msgspec.to_builtins(process)})
    else:
        _print_offline(report, f"{asked.first_model} · {backend} · {settings.engine.quantization}")
        _print_use(used, first_token_s, peak)
    return 0


def _steps(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    opened = open_model(pull_with_bar(settings, settings.models[0]), settings, detect())
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring")
        times = measure_model(opened, lambda done, total: progress.update(task, completed=done, total=total))
    if args.out is not None:
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(times)) + b"\n")
    _write_json(times)
    return 0


def _http(args: argparse.Namespace) -> int:
    with RemoteChat(args.url, args.model, args.api_key, SamplingParams()) as remote:
        model = remote.name
    plan = LoadPlan(
        url=args.url.rstrip("/").removesuffix("/v1") + "/v1/completions",
        model=model,
        num_clients=args.clients,
        num_requests=args.requests,
        prompt_words=args.prompt_len,
        output_tokens=args.output_len,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
        api_key=args.api_key,
    )
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("requests", total=plan.num_requests)
        before, cpu_s = read_times(args.url, model, args.api_key), process_time()
        report = asyncio.run(run_load(plan, lambda done: progress.update(task, completed=done)))
        cpu_s = process_time() - cpu_s
        use = engine_use(before, read_times(args.url, model, args.api_key), cpu_s)
    if args.json:
        _write_json({**msgspec.to_builtins(report), "engine_use": msgspec.to_builtins(use)})
    else:
        _print_http(report, plan, use)
    return 0 if report.failed == 0 else 1


def _print_offline(report: OfflineReport, title: str) -> None:
    shape = report.shape
    table = Table(
        title=f"{title} · {shape.prompt_tokens} in, {shape.output_tokens} out, batch {shape.batch}",
        title_justify="left",
        caption=f"median of {report.rounds} rounds, min … max",
        caption_justify="left",
    )
    for column in ("", "median", "range"):
        table.add_column(column, justify="left" if not column else "right")
    rows: list[tuple[str, Spread]] = [
        ("prefill, tokens/s", report.prefill_tokens_per_s),
        ("decode, tokens/s", report.decode_tokens_per_s),
        ("one step, ms", report.step_ms),
    ]
    for name, spread in rows:
        digits = 3 if name.endswith("ms") else 0
        table.add_row(name, f"{spread.median:,.{digits}f}", f"{spread.low:,.{digits}f} … {spread.high:,.{digits}f}")
    print_table(table)


def _print_use(used: Utilization | None, first_token_s: float | None, peak_bytes: int) -> None:
    console = Console()
    if used is not None:
        table = Table(box=None, show_header=False)
        for name, rate, share, of in (
            ("decode reads", f"{used.decode_gb_per_s:.1f} GB/s", used.decode_read_share, "of the read rate"),
            ("decode multiplies", f"{used.decode_top_per_s:.2f} TOP/s", used.decode_compute_share, "of the peak"),
            ("prefill multiplies", f"{used.prefill_top_per_s:.2f} TOP/s", used.prefill_compute_share, "of the peak"),
        ):
            table.add_row(name, rate, f"{share:.0%} {of}")
        print_table(table)
        limits = used.limits
        console.print(
            f"limits measured now: {limits.read_gb_per_s:.1f} GB/s read, int8 {limits.int8_top_per_s:.2f} TOP/s, "
            f"bf16 {limits.bf16_top_per_s:.2f} TOP/s; weights {used.weight_bytes / 1e6:,.1f} MB",
            soft_wrap=True,
        )
    if first_token_s is not None:
        console.print(f"process start to first token: {first_token_s:.2f} s")
    console.print(f"peak memory: {peak_bytes / 2**20:,.0f} MiB")


def _print_http(report: LoadReport, plan: LoadPlan, use: EngineUse | None) -> None:
    table = Table(
        title=f"{plan.num_clients} clients, {report.completed} requests, {report.failed} failed, "
        f"{report.output_tokens_per_s:,.1f} output tokens/s",
        title_justify="left",
    )
    for column in ("ms", "mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="left" if column == "ms" else "right")
    rows: list[tuple[str, Distribution]] = [
        ("TTFT", report.ttft_ms),
        ("ITL", report.itl_ms),
        ("TPOT", report.tpot_ms),
        ("end to end", report.e2e_ms),
    ]
    for name, found in rows:
        values = (found.mean, found.p50, found.p90, found.p99, found.max)
        table.add_row(name, *(f"{v:,.2f}" if found.count else "–" for v in values))
    console = Console()
    print_table(table)
    rate = report.prompt_tokens / max(report.duration_s, 1e-9)
    console.print(f"prompts: {report.prompt_tokens:,} tokens, {rate:,.0f} a second; seed {plan.seed}", soft_wrap=True)
    if use is not None:
        console.print(
            f"of the time {use.step_share:.1%} in the engine's steps, {use.planning_share:.1%} between them; "
            f"cores: {use.network_cores:.2f} network thread, {use.process_cores:.2f} server, "
            f"{use.client_cores:.2f} this load",
            soft_wrap=True,
        )
    for error in report.errors:
        console.print(f"failed: {error}")


def _write_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
