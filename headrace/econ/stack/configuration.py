"""What served a request: a model and how it is kept and computed, or a remote upstream.

Pure functions. Engines that were built alike and cost the same are one configuration, however often they were started.
"""

from __future__ import annotations

import msgspec

from headrace.econ.engines import EngineBuild, EngineSpan
from headrace.econ.money import show_usd


class Configuration(msgspec.Struct, frozen=True, order=True):
    """A model and what computes it; `is_remote` ones have nothing but their model.

    weights        how they are kept, `auto`: as they were stored; with `bits` of memory for each
    nano_per_hour  None where the machine's rate is not known
    """

    model: str
    is_remote: bool = False
    backend: str = ""
    weights: str = ""
    bits: float = 0.0
    kv_dtype: str = ""
    machine: str = ""
    threads: int = 0
    nano_per_hour: int | None = None

    @property
    def label(self) -> str:
        """Name it for people."""
        if self.is_remote:
            return f"{self.model}, remote"
        if not self.backend:
            return f"{self.model}, engine not described"
        kept = "as stored" if self.weights == "auto" else self.weights
        rate = "rate unknown" if self.nano_per_hour is None else f"${show_usd(self.nano_per_hour)}/h"
        memory = f"{kept} ({self.bits:.1f} bits), KV {self.kv_dtype}"
        return f"{self.model}, {memory}, {self.backend}, {self.threads} threads, {rate}"


def configuration_of(model: str, build: EngineBuild | None, span: EngineSpan | None) -> Configuration:
    """Return the configuration of an engine, as far as the ledger knows it."""
    rate = None if span is None else span.nano_per_hour
    if build is None:
        return Configuration(model, nano_per_hour=rate)
    bits = round(8 * build.weight_bytes / build.num_weights, 1) if build.num_weights else 0.0
    return Configuration(
        model=model,
        backend=build.backend,
        weights=build.weights,
        bits=bits,
        kv_dtype=build.kv_dtype,
        machine=build.machine,
        threads=build.threads,
        nano_per_hour=rate,
    )


class Servers:
    """Finds the configuration behind a row."""

    def __init__(self, spans: list[EngineSpan], builds: dict[str, EngineBuild]) -> None:
        self.of_engine = {
            span.engine: configuration_of(span.model, builds.get(span.engine), span) for span in reversed(spans)
        }
        self._builds = builds
        self._local = {span.model for span in spans}

    def find(self, model: str, engine: str | None, engine_ns: int) -> Configuration | None:
        """Return what served a request; None if it never reached an engine of ours."""
        if engine is not None:
            if engine not in self.of_engine:  # its spans lie outside of the period
                self.of_engine[engine] = configuration_of(model, self._builds.get(engine), None)
            return self.of_engine[engine]
        if engine_ns:
            return Configuration(model)
        return None if model in self._local else Configuration(model, is_remote=True)
