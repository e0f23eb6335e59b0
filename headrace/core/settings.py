"""Settings: everything a person may configure, from file, environment and command line, checked once.

Owns: the only reading of `os.environ` in the package. A default exists here and nowhere else; CLI flags derive from
these fields (`app.flags`). Unknown keys are errors with the nearest known name. What can be derived from the machine is
None here and filled with a reason by `app.plan.resolve`.
Order: defaults < TOML file < HEADRACE_SECTION__FIELD in the environment < command line.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from headrace.core.errors import ConfigError

Backend = Literal["auto", "reference", "native", "cuda"]
LogLevel = Literal["debug", "info", "warning", "error"]
Positive = Annotated[int, msgspec.Meta(ge=1)]

_ENV_PREFIX = "HEADRACE_"


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens and what it accepts.

    api_key: None serves without a key, on loopback addresses only.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    api_key: str | None = None
    max_body_bytes: Positive = 32 << 20
    log_level: LogLevel = "info"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine's dials. None is derived from model and machine.

    max_num_seqs     sequences in a step at most
    max_step_tokens  token budget of a step: decodes first, the rest for prompt chunks
    block_size       tokens in a KV block
    kv_memory_mib    size of the KV pool; None: a quarter of what is free after loading, capped by what
                     max_num_seqs full contexts need
    max_context      longest prompt + output; None: what the checkpoint was trained for
    max_waiting      requests that may wait before new ones are refused
    threads          worker threads of the CPU backends; None: one per core
    """

    backend: Backend = "auto"
    max_num_seqs: Positive = 64
    max_step_tokens: Positive = 512
    block_size: Positive = 32
    kv_memory_mib: Positive | None = None
    max_context: Positive | None = None
    max_waiting: Positive = 1024
    threads: Positive | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration. `cache_dir` holds pulled models; models names what to serve, default first."""

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    models: tuple[str, ...] = ("smollm2-135m",)
    cache_dir: str = "~/.cache/headrace"
