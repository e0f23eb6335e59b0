"""Settings: everything a person may configure, from file, environment and command line, checked once.

Owns: the only reading of `os.environ` in the package. A default exists here and nowhere else; CLI flags derive from
these fields (`cli.flags`), their help from the docstrings below. Unknown keys are errors with the nearest known name.
What can be derived from the machine is None here and filled with a reason by `app.plan.resolve`.
Order: defaults < TOML file < HEADRACE_SECTION__FIELD in the environment < command line.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_origin

import msgspec

from headrace.core.errors import ConfigError

Backend = Literal["auto", "reference", "native", "cuda"]
LogLevel = Literal["debug", "info", "warning", "error"]
Quantization = Literal["auto", "bf16", "int8", "int4"]
PrefixPolicy = Literal["lru", "cost"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]

_SECRET = {"api_key", "database"}
_ENV_PREFIX = "HEADRACE_"
_ENV_CONFIG = "HEADRACE_CONFIG"
_ENV_ISA = "HEADRACE_ISA"
_ENV_OTHERS = {_ENV_ISA}
# A Kubernetes service called `headrace` puts these into every pod; they are not ours.
_ENV_FOREIGN = ("HEADRACE_SERVICE_", "HEADRACE_PORT")


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens and what it accepts.

    host            address to listen on; other than loopback only with keys
    port            TCP port; 0 takes a free one
    api_key         bearer key that clients must send; without any key only loopback is served
    max_body_bytes  largest request body
    drain_s         seconds that running answers get to finish after SIGTERM
    log_level       least severe log line that is written
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    api_key: str | None = None
    max_body_bytes: Positive = 32 << 20
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    log_level: LogLevel = "info"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine's dials. None is derived from model and machine.

    backend          what computes a step; auto takes the fastest that works here
    quantization     how the native backend keeps weights; auto keeps the numbers of the file wherever it can
    max_num_seqs     sequences in a step at most
    max_step_tokens  token budget of a step: decodes first, the rest for prompt chunks
    block_size       tokens in a KV block
    kv_memory_mib    size of the KV pool in MiB; None: a quarter of what is free after loading, capped by what
                     max_num_seqs full contexts need
    max_context      longest prompt + output in tokens; None: what the checkpoint was trained for
    max_waiting      requests that may wait before new ones are refused
    threads          worker threads of the CPU backends; None: one per core
    prefix_cache     keep the KV of ended requests for those that begin with the same tokens
    prefix_policy    which of it goes first: lru, the least recently used, or cost, the least recompute cost times
                     learned chance of reuse
    """

    backend: Backend = "auto"
    quantization: Quantization = "auto"
    max_num_seqs: Positive = 64
    max_step_tokens: Positive = 512
    block_size: Positive = 32
    kv_memory_mib: Positive | None = None
    max_context: Positive | None = None
    max_waiting: Positive = 1024
    threads: Positive | None = None
    prefix_cache: bool = True
    prefix_policy: PrefixPolicy = "lru"


class SchedulingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is served first, and when the queue is long enough.

    max_waiting_tokens  prompt tokens that may wait before new requests are refused; None: no limit
    max_wait_s          predicted seconds to the first token beyond which new requests are refused; None: no limit
    itl_target_ms       gap between two tokens of an answer that prompt chunks of others may stretch a step to; None:
                        chunks are as long as max_step_tokens allows
    background_share    share by which background requests may stretch a step of others
    aging_s             seconds in which a priority class that is passed over rises by one
    fair_burst_tokens   tokens that one tenant may be ahead of another
    tenant_weights      shares of those tenants whose share is not 1
    output_ratio        share of max_tokens that answers are expected to reach, until some have been seen
    """

    max_waiting_tokens: Positive | None = None
    max_wait_s: PositiveSeconds | None = None
    itl_target_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    background_share: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    aging_s: PositiveSeconds = 10.0
    fair_burst_tokens: Positive = 4096
    tenant_weights: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}
    output_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


class HealthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the server calls itself ill.

    stall_s       seconds without a finished step, while there is work, after which the engine counts as stalled;
                  at least 20 times its warm-up
    stuck_s       seconds without progress after which a request is named as stuck
    stall_exit_s  seconds that an engine may stay stalled before the process ends with code 1
    """

    stall_s: PositiveSeconds = 60.0
    stuck_s: PositiveSeconds = 120.0
    stall_exit_s: PositiveSeconds = 240.0


class ResumeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Streams that a client can come back to. Bounds of what is kept for it.

    max_grace_s    longest time without a reader that a client may ask for (X-Resume-Grace); 0 switches it off
    max_events     events that are kept of one stream
    max_bytes      bytes that are kept of one stream
    max_streams    resumable requests at a time, running or kept
    idempotency_s  seconds for which an ended answer is kept for its Idempotency-Key
    """

    max_grace_s: Seconds = 60.0
    max_events: Positive = 8192
    max_bytes: Positive = 1 << 20
    max_streams: Positive = 256
    idempotency_s: Seconds = 600.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration.

    server     where to listen
    health     when to call itself ill
    resume     what is kept for clients that come back
    engine     how to compute
    scheduling whom to serve first
    models     names or sources of the models to serve, the default one first
    cache_dir  directory that holds pulled models
    database   keys, limits and budgets: sqlite:///PATH or postgresql://USER@HOST/NAME; None: no accounts are kept
    """

    server: ServerSettings = ServerSettings()
    health: HealthSettings = HealthSettings()
    resume: ResumeSettings = ResumeSettings()
    engine: EngineSettings = EngineSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    models: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("smollm2-135m",)
    cache_dir: str = "~/.cache/headrace"
    database: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingField:
    """One leaf of `Settings`: `key` is `section.name`, or the bare name at the top."""

    key: str
    section: str | None
    name: str
    type: object
    default: object
    help: str


def setting_fields() -> tuple[SettingField, ...]:
    """List every leaf of `Settings`, in the order of declaration."""
    leaves: list[SettingField] = []
    for top in msgspec.structs.fields(Settings):
        if isinstance(top.type, type) and issubclass(top.type, msgspec.Struct):
            helps = _field_help(top.type)
            for leaf in msgspec.structs.fields(top.type):
                leaves.append(
                    SettingField(
                        key=f"{top.name}.{leaf.name}",
                        section=top.name,
                        name=leaf.name,
                        type=leaf.type,
                        default=leaf.default_factory() if leaf.default is msgspec.NODEFAULT else leaf.default,
                        help=helps.get(leaf.name, ""),
                    )
                )
        else:
            text = _field_help(Settings).get(top.name, "")
            leaves.append(
                SettingField(key=top.name, section=None, name=top.name, type=top.type, default=top.default, help=text)
            )
    return tuple(leaves)


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Merge file, environment and overrides over the defaults.

    path       TOML file; None: the file named by HEADRACE_CONFIG, if any
    environ    None: this process's environment
    overrides  `section.name` → value, from the command line; None values are "not given"
    Raises ConfigError naming source, key and the nearest valid key, or the value and what is allowed.
    """
    env = os.environ if environ is None else environ
    if path is None and env.get(_ENV_CONFIG):
        path = Path(env[_ENV_CONFIG]).expanduser()
    known = {leaf.key: leaf for leaf in setting_fields()}
    merged: dict[str, object] = {}
    if path is not None:
        for key, value in _read_file(path).items():
            merged[key] = _convert(_known(key, known, f"file {path}"), value, f"file {path}", strict=True)
    names = {_env_name(leaf): leaf for leaf in known.values()}
    for name, text in env.items():
        if _is_setting(name):
            leaf = _known(name, names, "environment")
            merged[leaf.key] = _convert(leaf, _split(leaf, text), f"environment variable {name}", strict=False)
    for key, value in (overrides or {}).items():
        if value is not None:
            leaf = _known(key, known, "command line")
            merged[key] = _convert(leaf, value, f"flag --{leaf.name.replace('_', '-')}", strict=False)
    return _assemble(merged)


def _assemble(merged: Mapping[str, object]) -> Settings:
    document: dict[str, object] = {}
    sections: dict[str, dict[str, object]] = {}
    for key, value in merged.items():
        section, _, name = key.rpartition(".")
        (sections.setdefault(section, {}) if section else document)[name] = value
    try:
        return msgspec.convert(document | sections, Settings, strict=True)
    except msgspec.ValidationError as err:
        raise ConfigError(f"settings do not fit: {err}") from err


def _read_file(path: Path) -> dict[str, object]:
    import tomllib

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"cannot read the configuration file {path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"the configuration file {path} is not TOML: {err}") from err
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{name}": leaf for name, leaf in value.items()})
        else:
            flat[key] = value
    return flat


def _known(key: str, known: Mapping[str, SettingField], source: str) -> SettingField:
    if key in known:
        return known[key]
    import difflib

    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ConfigError(f"unknown setting '{key}' in {source}{hint}", param=key)


def _convert(leaf: SettingField, value: object, source: str, *, strict: bool) -> object:
    if isinstance(value, str) and get_origin(leaf.type) is dict:
        value = _pairs(value)
    try:
        return msgspec.convert(value, leaf.type, strict=strict)
    except msgspec.ValidationError as err:
        shown = "(hidden)" if leaf.name in _SECRET else repr(value)
        raise ConfigError(f"{leaf.key} = {shown} in {source} is not valid: {err}", param=leaf.key) from err


def _is_setting(name: str) -> bool:
    foreign = name == _ENV_CONFIG or name in _ENV_OTHERS or name.startswith(_ENV_FOREIGN)
    return name.startswith(_ENV_PREFIX) and not foreign


def _env_name(leaf: SettingField) -> str:
    return _ENV_PREFIX + leaf.key.replace(".", "__").upper()


def _split(leaf: SettingField, text: str) -> object:
    if leaf.name == "models":
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _pairs(text: str) -> dict[str, str]:
    """Read `name=value,name=value`, as tables are written in the environment and on the command line."""
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): value.strip() for name, _, value in parts}


def _field_help(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Read `name  text` lines of a class docstring; deeper lines continue the one above."""
    helps: dict[str, str] = {}
    current: str | None = None
    names = {leaf.name for leaf in msgspec.structs.fields(struct)}
    for line in inspect.cleandoc(struct.__doc__ or "").splitlines():
        word, _, rest = line.partition(" ")
        if word in names and rest.startswith(" "):
            current = word
            helps[word] = rest.strip()
        elif current is not None and line.startswith(" "):
            helps[current] += " " + line.strip()
        else:
            current = None
    return helps


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Where `hf:` models come from. The token is shown nowhere, `repr` included."""

    endpoint: str
    token: str | None = field(default=None, repr=False)


def forced_isa(environ: Mapping[str, str] | None = None) -> str | None:
    """Read HEADRACE_ISA: the one instruction set that native code must use, for tests and for finding faults."""
    return (os.environ if environ is None else environ).get(_ENV_ISA) or None


def hub_access(environ: Mapping[str, str] | None = None) -> HubAccess:
    """Read HF_ENDPOINT and HF_TOKEN, the names that the hub's own tools use."""
    env = os.environ if environ is None else environ
    return HubAccess(env.get("HF_ENDPOINT") or "https://huggingface.co", env.get("HF_TOKEN") or None)
