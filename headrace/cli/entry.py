"""`headrace`: reads the command line, imports the one command that was asked for, turns errors into exit codes.

Owns the grammar of the command line. Commands live one to a file, each with `run(args) -> exit code`.
Exit codes: 0 done; 1 a dead engine or an error that is ours; 2 wrong usage or configuration, one line on stderr;
130 interrupted before there was anything to drain.
Invariant: nothing heavy is imported before the command is known, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import headrace
from headrace.cli.accounts_grammar import add_budgets, add_keys, add_ledger, add_limits, add_prices, add_tenants
from headrace.cli.audit_grammar import add_audit
from headrace.cli.flags import add_setting_flags
from headrace.cli.parser import Parser
from headrace.core.errors import ConfigError, Conflict, HeadraceError, InvalidRequest, NotFound, UnknownModel

EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_INTERRUPTED = 0, 1, 2, 130
_CALLERS_FAULT = (ConfigError, Conflict, InvalidRequest, NotFound, UnknownModel)
_MODEL_HELP = "known name or source: hf:ORG/REPO, pypi:PACKAGE==VERSION!PATH, https:URL, file:PATH"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_CONFIG
    try:
        command = importlib.import_module(f"headrace.cli.{args.command}")
        code: int = command.run(args)
    except HeadraceError as err:
        print(f"headrace: {err.message}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(err, _CALLERS_FAULT) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has enough
        sys.stderr.close()
        return EXIT_OK
    except OSError as err:
        if err.filename is None:
            raise
        print(f"headrace: {err.filename}: {err.strerror}", file=sys.stderr)
        return EXIT_CONFIG
    return code


def build_parser() -> argparse.ArgumentParser:
    """Make the whole grammar."""
    parser = Parser(
        prog="headrace",
        description="Serve language models: from HTTP to the last multiply.",
        epilog="`headrace COMMAND --help` has the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"headrace {headrace.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve models over the OpenAI API")
    serve.add_argument("models", nargs="*", metavar="MODEL", help=_MODEL_HELP)
    sections = (
        "server",
        "health",
        "stream",
        "resume",
        "engine",
        "scheduling",
        "failover",
        "gateway",
        "audit",
        "degrade",
        "slo",
        "telemetry",
    )
    _add_settings(serve, (None, *sections))

    warm = commands.add_parser("warm", help="have a running server compute prompts and keep them")
    warm.add_argument("file", type=Path, metavar="FILE", help="JSON lines, each with 'prompt' or 'messages'")
    warm.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: http://127.0.0.1:8000)")
    warm.add_argument("--api-key", metavar="KEY", help="key for the server")
    warm.add_argument("--ttl-s", type=float, help="seconds to keep them (default: what the file says, or an hour)")

    swap = commands.add_parser("swap", help="give a model of a running server other weights")
    swap.add_argument("model", metavar="MODEL", help="name that the server serves")
    swap.add_argument("source", metavar="SOURCE", help=_MODEL_HELP)
    swap.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: http://127.0.0.1:8000)")
    swap.add_argument("--api-key", dest="server.api_key", metavar="KEY", help="key of an administrator")
    swap.add_argument("--wait-s", type=float, help="seconds for running requests to finish; default: server.drain_s")
    _add_settings(swap, (None,))

    pull = commands.add_parser("pull", help="download a model")
    pull.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    _add_settings(pull, (None,))

    models = commands.add_parser("models", help="list known and pulled models")
    models.add_argument("--json", action="store_true", help="write JSON")
    _add_settings(models, (None,))

    upstreams = commands.add_parser("upstreams", help="list the remote upstreams and ask whether they can be used")
    upstreams.add_argument("--json", action="store_true", help="write JSON")
    _add_settings(upstreams, (None,))

    chat = commands.add_parser("chat", help="talk to a model, here or at a URL")
    chat.add_argument("models", nargs="?", metavar="MODEL", help=_MODEL_HELP)
    chat.add_argument("--url", help="talk to a running server instead of loading a model")
    chat.add_argument("--api-key", dest="server.api_key", metavar="KEY", help="key for the server at --url")
    chat.add_argument("--system", help="first message, from the system")
    _add_sampling(chat)
    _add_settings(chat, (None, "engine"))

    generate = commands.add_parser("generate", help="continue prompts without a server")
    generate.add_argument("--model", dest="models", metavar="MODEL", help=_MODEL_HELP)
    generate.add_argument(
        "--prompt", action="append", help="prompt, may be given several times; '-' reads standard input"
    )
    generate.add_argument("--stream", action="store_true", help="write text as it comes (one prompt only)")
    generate.add_argument("--json", action="store_true", help="write one JSON object per prompt")
    _add_sampling(generate)
    _add_settings(generate, (None, "engine"))

    doctor = commands.add_parser("doctor", help="say what this machine has")
    doctor.add_argument("--json", action="store_true", help="write JSON")
    _add_settings(doctor, (None,))

    plan = commands.add_parser("plan", help="say how an engine would be built here")
    plan.add_argument("models", nargs="*", metavar="MODEL", help=_MODEL_HELP)
    plan.add_argument("--explain", action="store_true", help="add the reason of every value")
    _add_settings(plan, (None, "engine"))

    add_tenants(commands.add_parser("tenants", help="who owns keys, limits and budgets"), _add_general)
    add_keys(commands.add_parser("keys", help="make, list, rotate and revoke the keys of tenants"), _add_general)
    add_limits(commands.add_parser("limits", help="how often a key, a tenant or everyone may ask"), _add_general)
    add_budgets(commands.add_parser("budgets", help="how much each may spend, and how much is left"), _add_general)

    add_prices(commands.add_parser("prices", help="make a price book from a public list, and look into it"))
    add_ledger(commands.add_parser("ledger", help="what was used, charged and paid for"), _add_general)

    dashboards = commands.add_parser("dashboards", help="write Grafana dashboards and Prometheus rules for a server")
    dashboards.add_argument("--out", type=Path, default=Path("monitoring"), metavar="DIR", help="(default: monitoring)")
    _add_settings(dashboards, (None, "slo"))

    add_audit(
        commands.add_parser("audit", help="who asked what when, and what it cost to serve"),
        _add_general,
    )

    why = commands.add_parser("why", help="ask a server why a request waits, was preempted or refused")
    why.add_argument("id", metavar="ID", help="the request's x-request-id, or the id in its answer")
    why.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: http://127.0.0.1:8000)")
    why.add_argument("--api-key", metavar="KEY", help="the key that the request was sent with")
    why.add_argument("--json", action="store_true", help="write JSON")

    openapi = commands.add_parser("openapi", help="print the OpenAPI document of the HTTP API")
    openapi.add_argument("--admin", action="store_true", help="that of the administration of accounts instead")
    openapi.add_argument(
        "--url", default="/", help="the server that the document speaks of (default: whoever sends it)"
    )

    _add_replay(commands.add_parser("replay", help="run a decision log again on the same scheduler code, and compare"))
    _add_sim(commands.add_parser("sim", help="run recorded arrivals through the real engine on a virtual clock"))
    _add_eval(commands.add_parser("eval", help="compare a configuration with the same weights in fp32"))
    _add_bench(commands.add_parser("bench", help="measure speed"))
    return parser


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path, metavar="FILE", help="what engine.decision_log has written")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("--step-times", type=Path, metavar="OUT", help="fit step times for `headrace sim`, too")


def _add_sim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="TRACE", help="JSON lines as Mooncake's, or CSV as Azure's")
    parser.add_argument("--requests", type=int, help="only the first so many")
    parser.add_argument("--rate", type=float, default=1.0, help="times as many arrivals per second (default: 1)")
    parser.add_argument(
        "--step-times",
        default="llama-8b-h100",
        metavar="NAME|FILE",
        help="what a step costs: a known set, or what `headrace bench steps` has written (default: llama-8b-h100)",
    )
    parser.add_argument("--kv-tokens", type=int, help="size of the KV pool")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[1.0, 5.0, 20.0],
        metavar="PERCENT",
        help="sizes as parts of the trace's distinct tokens, without --kv-tokens (default: 1 5 20)",
    )
    parser.add_argument(
        "--policies", nargs="+", choices=("lru", "cost"), help="prefix policies to compare; default: the configured one"
    )
    parser.add_argument("--slo-ttft-ms", type=float, default=2000.0, help="longest good TTFT (default: 2000)")
    parser.add_argument("--slo-tpot-ms", type=float, default=100.0, help="longest good mean ITL (default: 100)")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    _add_settings(parser, (None, "engine", "scheduling"))


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("measure", choices=("kl", "ppl"), help="KL divergence and agreement, or perplexity")
    parser.add_argument("--model", dest="models", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--against", choices=("fp32",), default="fp32", help="what to compare with")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="text to score; default: one that ships with Headrace"
    )
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens to score at most (default: 4096)")
    parser.add_argument("--json", action="store_true", help="write JSON")
    _add_settings(parser, (None, "engine"))


def _add_bench(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")

    offline = kinds.add_parser("offline", help="prefill and decode speed of one configuration, without a server")
    offline.add_argument(
        "--model", dest="models", metavar="MODEL", help=f"{_MODEL_HELP}, or random:llama-1b for random weights"
    )
    offline.add_argument("--prompt-len", type=int, default=512, help="tokens in a prompt (default: 512)")
    offline.add_argument("--output-len", type=int, default=64, help="tokens in an answer (default: 64)")
    offline.add_argument("--batch", type=int, default=1, help="sequences together (default: 1)")
    offline.add_argument("--rounds", type=int, default=5, help="measured repeats (default: 5)")
    offline.add_argument("--json", action="store_true", help="write JSON")
    _add_settings(offline, (None, "engine"))

    steps = kinds.add_parser("steps", help="what a step costs here, fitted for `headrace sim`")
    steps.add_argument("--model", dest="models", metavar="MODEL", help=_MODEL_HELP)
    steps.add_argument("--out", type=Path, metavar="FILE", help="write the step times there, as JSON")
    _add_settings(steps, (None, "engine"))

    http = kinds.add_parser("http", help="load on a running server: N streaming clients in a closed loop")
    http.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: http://127.0.0.1:8000)")
    http.add_argument("--model", help="name the server knows (default: the first that it serves)")
    http.add_argument("--clients", type=int, default=16, help="streams at a time (default: 16)")
    http.add_argument("--requests", type=int, default=32, help="requests in all (default: 32)")
    http.add_argument("--prompt-len", type=int, default=256, help="words in a prompt (default: 256)")
    http.add_argument("--output-len", type=int, default=64, help="tokens in an answer (default: 64)")
    http.add_argument("--api-key", help="key of the server, if it asks for one")
    http.add_argument("--seed", type=int, help="draw the same prompts again (default: new ones, unknown to any cache)")
    http.add_argument("--json", action="store_true", help="write JSON")

    peers = kinds.add_parser("peers", help="compare with other engines, each in its own environment")
    peers.add_argument("--model", dest="models", metavar="MODEL", help=_MODEL_HELP)
    peers.add_argument("--peers", type=Path, default=Path(".peers"), help="where their environments are (.peers)")
    peers.add_argument("--out", type=Path, default=Path("bench-results/peers"), help="report, without its suffix")
    peers.add_argument("--rounds", type=int, default=5, help="measured repeats offline (default: 5)")
    peers.add_argument("--http-rounds", type=int, default=1, help="measured repeats over HTTP, 0 for none (default: 1)")
    _add_settings(peers, (None, "engine"))


def _add_general(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser, (None,))


def _add_settings(parser: argparse.ArgumentParser, sections: tuple[str | None, ...]) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    add_setting_flags(parser, sections)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, help="tokens in an answer at most")
    group.add_argument("--temperature", type=float, help="0 is greedy; default: what the model asks for, or 1")
    group.add_argument("--top-p", type=float, help="keep the likeliest tokens up to this probability")
    group.add_argument("--seed", type=int, help="draw the same answer again")
