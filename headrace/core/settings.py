"""Settings: everything a person may configure, from file, environment and command line, checked once.

Long because each field's help stands beside it, for flags and documents to be made of.

Owns: the only reading of `os.environ` in the package. A default exists here and nowhere else; CLI flags derive from
these fields (`cli.flags`), their help from the docstrings below. Unknown keys are errors with the nearest known name.
What can be derived from the machine is None here and filled with a reason by `app.plan.resolve`.
Order: defaults < TOML file < HEADRACE_SECTION__FIELD in the environment < command line.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import msgspec

from headrace.core.audit_settings import AuditSettings
from headrace.core.degrade_settings import DegradeSettings
from headrace.core.errors import ConfigError
from headrace.core.gateway_settings import GatewaySettings
from headrace.core.slo_settings import SloSettings
from headrace.core.telemetry_settings import TelemetrySettings
from headrace.core.toml_lines import line_of
from headrace.core.upstream_settings import FailoverSettings, UpstreamSettings

Backend = Literal["auto", "reference", "native", "cuda"]
KvDtype = Literal["auto", "bf16", "int8"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Quantization = Literal["auto", "bf16", "int8", "int4", "int4-g64", "int4-g128", "fp8"]
PrefixPolicy = Literal["lru", "cost"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]

_SECRET = {"api_key", "database", "kv_redis_url", "kv_secret"}
_LISTS = {"models", "cors_origins", "old_keys"}
_TABLES = "upstreams"  # a table of tables: in the file only
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
    log_format      text for people, or json: one object per line
    cors_origins    web origins whose pages may call, such as https://app.example; * for all
    max_connections  connections at a time; further ones are answered with 503
    tls_cert        PEM file with the certificate chain; with tls_key, HTTPS is spoken
    tls_key         PEM file with its private key
    warm            file of prompts (JSON lines, as for `headrace warm`) to compute and keep before serving; None: none
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    api_key: str | None = None
    max_body_bytes: Positive = 32 << 20
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    cors_origins: tuple[str, ...] = ()
    max_connections: Positive | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    warm: str | None = None


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine's dials. None is derived from model and machine.

    backend          what computes a step; auto takes the fastest that works here
    quantization     how the native and the cuda backend keep weights; auto keeps the numbers of the file wherever it
                     can; int4 is in groups of 32, or longer if it says so; fp8 is for cuda
    kv_dtype         how K and V are kept: int8, with a scale per token and head, holds nearly twice the tokens of bf16
                     in the same memory; auto is bf16, on the reference backend fp32
    max_num_seqs     sequences in a step at most; None: 64, on a GPU with 32 GiB free 256
    max_step_tokens  token budget of a step: decodes first, the rest for prompt chunks; None: 512, on a GPU 512 to 8192
                     by its free memory
    chunk_tokens     prompt tokens in a step in which others decode; None: 512 on a GPU, on a CPU half of
                     max_step_tokens; on a CPU more beside many that decode
    block_size       tokens in a KV block
    kv_memory_mib    size of the KV pool in MiB; None: a quarter of what is free after loading, capped by what
                     max_num_seqs full contexts need
    max_context      longest prompt + output in tokens; None: what the checkpoint was trained for
    attention_window  tokens that each token attends to, itself included, besides the sinks; max_context may then be
                     more than what the checkpoint was trained for, in bounded memory, but what is further back is
                     forgotten; None: all before it
    attention_sinks  first tokens that are attended to besides attention_window: without them answers fall apart
    max_waiting      requests that may wait before new ones are refused
    threads          worker threads of the CPU backends; None: one per core
    prefix_cache     keep the KV of ended requests for those that begin with the same tokens
    share_prefixes   let tenants find each other's cached prefixes, and feel their timing
    prefix_policy    which of it goes first: lru, the least recently used, or cost, the least recompute cost times
                     learned chance of reuse
    kv_ram_bytes     host memory for blocks that the pool gives up or preempted requests leave behind, in bytes; None:
                     none, or up to 256 MiB when there is a disk or Redis to go through it to
    kv_disk_dir      directory that keeps blocks over restarts; None: none
    kv_disk_bytes    most bytes that files in kv_disk_dir take
    kv_redis_url     Redis server that shares blocks between machines, such as redis://host:6379/0 (needs the extra
                     redis); None: none
    kv_wait_s        longest time in seconds that a request waits for disk or Redis, where computing takes longer than
                     that; a call that lasts longer counts as failed
    kv_secret        passphrase that names and seals of blocks outside this process are made with; servers that share
                     blocks need the same; None: one that is made once and kept in cache_dir
    batch_invariant  let no answer of the cuda backend depend on what else is computed beside it, to the last bit;
                     slower. The CPU backends always keep this
    early_launch     have kernels of the cuda backend set up on the GPU while the ones before them still run
                     (programmatic dependent launch); takes compute capability 9.0. Off: not measured on a GPU yet
    async_scheduling  plan a step while the one before still runs, so that the device does not wait for the CPU between
                     two; auto does so on the cuda backend. The native backend computes on the cores that plan
    step_shares      who pays for what a step costs however many share it, in the account of the engine's time: equal,
                     each row the same, or tokens, in proportion to the tokens computed
    cache_rent       what the next user of a cached prefix pays for the memory it took meanwhile, in the account of the
                     engine's time: capped, at most what computing it again would have taken; full; or none
    cache_memory_share  share of the machine's time that the memory of the whole pool is worth, for that rent
    decision_log     file that the scheduler's inputs and decisions are written to, for `headrace replay`; None: no log.
                     Without content: blocks of tokens are there as keyed digests only
    decision_log_mib  MiB that this file and the older ones beside it may take
    """

    backend: Backend = "auto"
    quantization: Quantization = "auto"
    kv_dtype: KvDtype = "auto"
    max_num_seqs: Positive | None = None
    max_step_tokens: Positive | None = None
    chunk_tokens: Positive | None = None
    block_size: Positive = 32
    kv_memory_mib: Positive | None = None
    max_context: Positive | None = None
    attention_window: Positive | None = None
    attention_sinks: Annotated[int, msgspec.Meta(ge=0)] = 4
    max_waiting: Positive = 1024
    threads: Positive | None = None
    prefix_cache: bool = True
    share_prefixes: bool = False
    prefix_policy: PrefixPolicy = "lru"
    kv_ram_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    kv_disk_dir: str | None = None
    kv_disk_bytes: Positive = 10 << 30
    kv_redis_url: str | None = None
    kv_wait_s: PositiveSeconds = 5.0
    kv_secret: str | None = None
    batch_invariant: bool = False
    early_launch: bool = False
    async_scheduling: Literal["auto", "on", "off"] = "auto"
    step_shares: Literal["equal", "tokens"] = "equal"
    cache_rent: Literal["capped", "full", "none"] = "capped"
    cache_memory_share: Share = 0.1
    decision_log: str | None = None
    decision_log_mib: Positive = 256


class SchedulingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is served first, and when the queue is long enough.

    max_waiting_tokens  prompt tokens that may wait before new requests are refused; None: no limit
    max_wait_s          predicted seconds to the first token beyond which new requests are refused; None: no limit
    itl_target_ms       gap between two tokens of an answer that prompt chunks of others may stretch a step to; None:
                        chunks are cut by engine.chunk_tokens
    background_share    share by which background requests may stretch a step of others
    aging_s             seconds in which a priority class that is passed over rises by one
    fair_burst_tokens   tokens that one tenant may be ahead of another
    tenant_weights      shares of those tenants whose share is not 1
    output_ratio        share of max_tokens that answers are expected to reach, until some have been seen
    """

    max_waiting_tokens: Positive | None = None
    max_wait_s: PositiveSeconds | None = 60.0
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
    warm_up_s     seconds that a model's warm-up may take before the process ends with code 1
    """

    stall_s: PositiveSeconds = 60.0
    stuck_s: PositiveSeconds = 120.0
    stall_exit_s: PositiveSeconds = 240.0
    warm_up_s: PositiveSeconds = 600.0


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a slow reader may leave unread.

    max_unread_tokens  tokens of a choice that wait for its reader before its sequence is paused
    slow_reader_s      seconds for which nothing may be read of a full stream before it is aborted and its connection
                       closed; the request's own X-Resume-Grace if that is longer
    """

    max_unread_tokens: Positive = 1024
    slow_reader_s: PositiveSeconds = 60.0


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
    stream     what a slow reader may leave unread
    resume     what is kept for clients that come back
    engine     how to compute
    scheduling whom to serve first
    gateway    whom to serve at all
    audit      what is written down about calls and changes
    degrade    what callers get less of when there is not enough for all
    failover   when remote upstreams fail
    slo        what counts as a good answer
    telemetry  where traces go
    upstreams  remote servers by name
    models     names or sources of the models to serve from here, the default one first; none where upstreams are set
    cache_dir  directory that holds pulled models
    database   keys, limits and budgets: sqlite:///PATH or postgresql://USER@HOST/NAME; None: no accounts are kept
    """

    server: ServerSettings = ServerSettings()
    health: HealthSettings = HealthSettings()
    stream: StreamSettings = StreamSettings()
    resume: ResumeSettings = ResumeSettings()
    engine: EngineSettings = EngineSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    failover: FailoverSettings = FailoverSettings()
    upstreams: dict[str, UpstreamSettings] = {}
    gateway: GatewaySettings = GatewaySettings()
    audit: AuditSettings = AuditSettings()
    degrade: DegradeSettings = DegradeSettings()
    slo: SloSettings = SloSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    models: tuple[str, ...] = ("smollm2-135m",)
    cache_dir: str = "~/.cache/headrace"
    database: str | None = None

    @property
    def first_model(self) -> str:
        """Return the model to load where one is wanted. Raises ConfigError if all are remote."""
        if not self.models:
            raise ConfigError("every configured model is served by a remote upstream; name one to load here")
        return self.models[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingField:
    """One leaf of `Settings`: `key` is `section.name`, or the bare name at the top."""

    key: str
    section: str | None
    name: str
    type: object
    default: object
    help: str


@lru_cache(maxsize=1)
def setting_fields() -> tuple[SettingField, ...]:
    """List every leaf of `Settings`, in the order of declaration; tables with names of their own are none."""
    leaves: list[SettingField] = []
    for top in msgspec.structs.fields(Settings):
        if top.name == _TABLES:
            continue
        if isinstance(top.type, type) and issubclass(top.type, msgspec.Struct):
            helps = field_help(top.type)
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
            text = field_help(Settings).get(top.name, "")
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
    Raises ConfigError naming source (a file with the line), key and the nearest valid key, or the value and what is
    allowed.
    """
    env = os.environ if environ is None else environ
    if path is None and env.get(_ENV_CONFIG):
        path = Path(env[_ENV_CONFIG]).expanduser()
    known = {leaf.key: leaf for leaf in setting_fields()}
    merged: dict[str, object] = {}
    tables: dict[str, UpstreamSettings] = {}
    if path is not None:
        document, lines = _read_file(path)
        try:
            tables = _upstreams(document.pop(_TABLES, {}), f"file {path}")
            for key, value in _flat(document).items():
                merged[key] = _convert(_known(key, known, f"file {path}"), value, f"file {path}", strict=True)
        except ConfigError as err:
            raise _with_line(err, path, lines) from err
    names = {_env_name(leaf): leaf for leaf in known.values()}
    for name, text in env.items():
        if _is_setting(name):
            leaf = _known(name, names, "environment")
            merged[leaf.key] = _convert(leaf, _split(leaf, text), f"environment variable {name}", strict=False)
    for key, value in (overrides or {}).items():
        if value is not None:
            leaf = _known(key, known, "command line")
            merged[key] = _convert(leaf, _split(leaf, value), f"flag --{leaf.name.replace('_', '-')}", strict=False)
    return _assemble(merged, tables, "settings" if path is None else f"file {path}")


def _assemble(merged: Mapping[str, object], upstreams: Mapping[str, UpstreamSettings], source: str) -> Settings:
    tree: dict[str, object] = {_TABLES: upstreams}
    for key, value in merged.items():
        section, _, name = key.rpartition(".")
        place = tree.setdefault(section, {}) if section else tree
        assert isinstance(place, dict)
        place[name] = value
    if upstreams and "models" not in merged:
        tree["models"] = []  # the default model is for those who configure nothing
    try:
        settings = msgspec.convert(tree, Settings, strict=True)
    except msgspec.ValidationError as err:
        raise ConfigError(f"settings do not fit: {err}") from err
    if not settings.models and not upstreams:
        raise ConfigError(
            f"'models' in {source} is empty and there is no [upstreams.NAME]; name a model or an upstream"
        )
    return settings


def _upstreams(tables: object, source: str) -> dict[str, UpstreamSettings]:
    """Check the `[upstreams.NAME]` tables of a file. Raises ConfigError with the table, the key and the nearest key."""
    if not isinstance(tables, dict):
        raise ConfigError(f"'{_TABLES}' in {source} is no table; write [upstreams.NAME]", param=_TABLES)
    names = {leaf.name for leaf in msgspec.structs.fields(UpstreamSettings)}
    found: dict[str, UpstreamSettings] = {}
    for name, table in tables.items():
        where = f"{_TABLES}.{name}"
        if not isinstance(table, dict):
            raise ConfigError(f"'{where}' in {source} is no table; write [{where}]", param=where)
        for key in table:
            if key not in names:
                near = _nearest(key, names)
                raise ConfigError(f"unknown setting '{where}.{key}' in {source}{near}", param=f"{where}.{key}")
        try:
            found[name] = msgspec.convert(table, UpstreamSettings, strict=False)
        except msgspec.ValidationError as err:
            raise _unfit(err, where, table, source) from err
        _check_key_places(found[name], where)
    return found


def _unfit(err: msgspec.ValidationError, where: str, table: Mapping[str, object], source: str) -> ConfigError:
    key = str(err).partition("`$.")[2].partition("`")[0]
    for leaf in msgspec.structs.fields(UpstreamSettings):
        if leaf.name == key and (choices := _choices(leaf.type)):
            place = f"{where}.{key}"
            return ConfigError(f"{place} = {table[key]!r} in {source} is not valid: {choices}", param=place)
    return ConfigError(f"[{where}] in {source} is not valid: {err}", param=where)


def _check_key_places(upstream: UpstreamSettings, where: str) -> None:
    """Keep keys out of the file. Raises ConfigError."""
    places = [upstream.api_key] if isinstance(upstream.api_key, str) else upstream.api_key or ()
    for place in places:
        if not place.startswith(("env:", "file:")):
            raise ConfigError(
                f"{where}.api_key (hidden) does not say where the key is kept; write 'env:NAME' or 'file:PATH'",
                param=f"{where}.api_key",
            )
    for name in upstream.headers:
        if name.lower() in ("authorization", "x-api-key"):
            raise ConfigError(f"{where}.headers sets '{name}'; set {where}.api_key instead", param=f"{where}.headers")


def _with_line(err: ConfigError, path: Path, text: str) -> ConfigError:
    """Say in which line of the file the key stands that `err` is about."""
    number = None if err.param is None else line_of(text, err.param)
    if number is None:
        return err
    where = f"file {path}"
    message = err.message.replace(where, f"{where}:{number}", 1)
    return ConfigError(message if message != err.message else f"{message} ({where}:{number})", param=err.param)


def _read_file(path: Path) -> tuple[dict[str, object], str]:
    """Return what the file says, and its text."""
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except OSError as err:
        raise ConfigError(f"cannot read the configuration file {path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"the configuration file {path} is not TOML: {err}") from err


def _flat(document: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{name}": leaf for name, leaf in value.items()})
        else:
            flat[key] = value
    return flat


def _nearest(key: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"; did you mean '{near[0]}'?" if near else ""


def _known(key: str, known: Mapping[str, SettingField], source: str) -> SettingField:
    if key in known:
        return known[key]
    raise ConfigError(f"unknown setting '{key}' in {source}{_nearest(key, known)}", param=key)


def _convert(leaf: SettingField, value: object, source: str, *, strict: bool) -> object:
    if isinstance(value, str) and get_origin(leaf.type) is dict:
        value = _pairs(value)
    try:
        return msgspec.convert(value, leaf.type, strict=strict)
    except msgspec.ValidationError as err:
        shown = "(hidden)" if leaf.name in _SECRET else repr(value)
        what = _choices(leaf.type) or str(err)
        raise ConfigError(f"{leaf.key} = {shown} in {source} is not valid: {what}", param=leaf.key) from err


def _choices(kind: object) -> str:
    """Say which words a setting may be, where it is one of a few."""
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return f"it must be one of {', '.join(map(str, words))}" if words else ""


def _is_setting(name: str) -> bool:
    foreign = name == _ENV_CONFIG or name in _ENV_OTHERS or name.startswith(_ENV_FOREIGN)
    return name.startswith(_ENV_PREFIX) and not foreign


def _env_name(leaf: SettingField) -> str:
    return _ENV_PREFIX + leaf.key.replace(".", "__").upper()


def _split(leaf: SettingField, value: object) -> object:
    """Read a list that is written as `a,b`, as in the environment and on the command line."""
    if leaf.name in _LISTS and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _pairs(text: str) -> dict[str, str]:
    """Read `name=value,name=value`, as tables are written in the environment and on the command line."""
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): value.strip() for name, _, value in parts}


@lru_cache
def field_help(struct: type[msgspec.Struct]) -> dict[str, str]:
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


def names_c_compiler() -> bool:
    """Say whether the system names a C compiler (CC), as those who build with it do."""
    return "CC" in os.environ


def forced_isa(environ: Mapping[str, str] | None = None) -> str | None:
    """Read HEADRACE_ISA: the one instruction set that native code must use, for tests and for finding faults."""
    return (os.environ if environ is None else environ).get(_ENV_ISA) or None


def hub_access(environ: Mapping[str, str] | None = None) -> HubAccess:
    """Read HF_ENDPOINT and HF_TOKEN, the names that the hub's own tools use."""
    env = os.environ if environ is None else environ
    return HubAccess(env.get("HF_ENDPOINT") or "https://huggingface.co", env.get("HF_TOKEN") or None)


def read_secret(place: str, environ: Mapping[str, str] | None = None) -> str:
    """Read a key from where it is kept, `env:NAME` or `file:PATH`. Raises ConfigError naming the place alone."""
    kind, _, where = place.partition(":")
    if kind == "env":
        secret = (os.environ if environ is None else environ).get(where, "").strip()
        if not secret:
            raise ConfigError(f"environment variable {where} is empty or not set; it should hold an API key")
        return secret
    try:
        secret = Path(where).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read the key file {where}: {type(err).__name__}; is its path right?") from err
    if not secret or "\n" in secret:
        raise ConfigError(f"key file {where} should hold one key on one line")
    return secret
