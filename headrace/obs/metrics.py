"""The metric registry: engines tell what happens, Prometheus reads it under vLLM's names where the meaning is the same.

Owns: every counter and histogram. Observed and rendered on the network thread; an observation is a few list operations.
Gauges are read from the engine's snapshot when somebody scrapes, so an idle server does no work for them.
Names: `vllm:*` so that existing dashboards, autoscalers and load generators work unchanged; `headrace_*` for the rest.
Source: vLLM's V1 metrics (names, labels, bucket edges); Prometheus text format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.core.delta import FinishReason
from headrace.core.errors import HeadraceError
from headrace.core.health import HealthState, ModelHealth
from headrace.core.slo_settings import SloSettings
from headrace.core.stats import AdmissionStats, AuditStats, EngineSnapshot, RequestStats, StepStats
from headrace.core.upstream_status import UpstreamStatus
from headrace.obs import accounts
from headrace.obs.audit import audit_families
from headrace.obs.door import DoorMetrics
from headrace.obs.histogram import (
    CHOICE_EDGES,
    ITL_EDGES_S,
    LATENCY_EDGES_S,
    LENGTH_EDGES,
    STEP_TOKEN_EDGES,
    TTFT_EDGES_S,
    Histogram,
    with_edge,
)
from headrace.obs.money import charge_families, engine_families
from headrace.obs.slo import SloCounts, longest, slo_families, tpot_s
from headrace.obs.tenants import TenantCounts, tenant_families
from headrace.obs.tiers import tier_families
from headrace.obs.upstream_metrics import upstream_families

_LABELS = ("model_name",)


class ModelMetrics:
    """What one engine has told so far. Implements `core.stats.Observer`."""

    def __init__(self, model_name: str, slo: SloSettings) -> None:
        self.model_name = model_name
        objectives = slo.of(model_name)
        self.slo = SloCounts(objectives, slo.target)
        self.ttft = Histogram(with_edge(TTFT_EDGES_S, objectives.ttft_s))
        self.itl = Histogram(with_edge(ITL_EDGES_S, objectives.tpot_s))
        self.tpot = Histogram(with_edge(ITL_EDGES_S, objectives.tpot_s))
        self.e2e = Histogram(with_edge(LATENCY_EDGES_S, objectives.e2e_s))
        self.queue = Histogram(LATENCY_EDGES_S)
        self.prefill = Histogram(LATENCY_EDGES_S)
        self.decode = Histogram(LATENCY_EDGES_S)
        self.inference = Histogram(LATENCY_EDGES_S)
        self.prompt_lengths = Histogram(LENGTH_EDGES)
        self.answer_lengths = Histogram(LENGTH_EDGES)
        self.longest_answers = Histogram(LENGTH_EDGES)
        self.max_tokens = Histogram(LENGTH_EDGES)
        self.num_choices = Histogram(CHOICE_EDGES)
        self.step_tokens = Histogram(STEP_TOKEN_EDGES)
        self.device_s = 0.0
        self.loop_s = 0.0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.finished: dict[str, int] = {reason.value: 0 for reason in FinishReason}
        self.refused: dict[str, int] = {}
        self.tenants = TenantCounts()

    def on_step(self, stats: StepStats) -> None:
        """Count one step."""
        self.step_tokens.observe(stats.num_tokens)
        self.device_s += stats.device_s
        self.loop_s += stats.loop_s

    def on_first_token(self, ttft_s: float) -> None:
        """Observe a time to first token."""
        self.ttft.observe(ttft_s)

    def on_next_token(self, gap_s: float) -> None:
        """Observe a gap between two tokens of a choice."""
        self.itl.observe(gap_s)

    def on_finished(self, stats: RequestStats) -> None:
        """Count an ended request."""
        self.tenants.on_finished(stats)
        self.slo.on_finished(stats)
        self.e2e.observe(stats.finished_s - stats.arrival_s)
        if (mean_gap_s := tpot_s(stats)) is not None:
            self.tpot.observe(mean_gap_s)
        if stats.first_scheduled_s is not None:
            self.queue.observe(stats.first_scheduled_s - stats.arrival_s)
            self.inference.observe(stats.finished_s - stats.first_scheduled_s)
            if stats.first_token_s is not None:
                self.prefill.observe(stats.first_token_s - stats.first_scheduled_s)
                self.decode.observe(stats.finished_s - stats.first_token_s)
        self.prompt_lengths.observe(stats.prompt_tokens)
        self.answer_lengths.observe(stats.completion_tokens)
        self.longest_answers.observe(longest(stats))
        self.num_choices.observe(len(stats.finishes))
        if stats.max_tokens is not None:
            self.max_tokens.observe(stats.max_tokens)
        self.prompt_tokens += stats.prompt_tokens
        self.cached_tokens += stats.cached_tokens
        for finish in stats.finishes:
            self.finished[finish.value] += 1

    def on_refused(self, error: HeadraceError) -> None:
        """Count a request refused at the door."""
        self.slo.on_refused(error)
        self.refused[error.code] = self.refused.get(error.code, 0) + 1


def _no_accounts() -> AdmissionStats:
    return AdmissionStats(live=0, late=0, batches=0, commands=0, expired=0, shadowed=0, failures=0, refused={})


def _no_audit() -> AuditStats | None:
    return AuditStats(waiting=0, written=0, lost=0, refused=0, failures=0)


class Metrics(Collector):
    """All engines' metrics and the process's own."""

    def __init__(self, slo: SloSettings | None = None) -> None:
        self._slo = slo or SloSettings()
        self._engines: list[tuple[ModelMetrics, Callable[[], EngineSnapshot]]] = []
        self._healths: dict[str, Callable[[], ModelHealth]] = {}
        self._stalls: dict[str, int] = {}
        self._startup_s: dict[str, float] = {}
        self._nano_per_hour: int | None = None
        self.door = DoorMetrics()
        self._upstreams: Callable[[], Sequence[UpstreamStatus]] = tuple
        self._accounts: Callable[[], AdmissionStats] = _no_accounts
        self._audit: Callable[[], AuditStats | None] = _no_audit
        self._failed_kernels: Callable[[], Sequence[str]] = tuple
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def observer(self, model_name: str) -> ModelMetrics:
        """Make the observer that the engine of `model_name` reports to."""
        return ModelMetrics(model_name, self._slo)

    def add(self, metrics: ModelMetrics, snapshot: Callable[[], EngineSnapshot]) -> None:
        """Show an engine: its observer's counts, and the gauges that `snapshot` reads."""
        self._engines.append((metrics, snapshot))

    def observer_of(self, model_name: str) -> ModelMetrics:
        """Return the observer of a model that is shown."""
        return next(metrics for metrics, _ in self._engines if metrics.model_name == model_name)

    def snapshot_of(self, model_name: str) -> Callable[[], EngineSnapshot]:
        """Return what reads the gauges of a model that is shown."""
        return next(read for metrics, read in self._engines if metrics.model_name == model_name)

    def succeed(
        self, model_name: str, snapshot: Callable[[], EngineSnapshot], before: Callable[[], EngineSnapshot]
    ) -> None:
        """Show an engine in place of one of the same model; its counters go on from those that `before` reads."""
        metrics = self.observer_of(model_name)
        shown = [metrics.model_name for metrics, _ in self._engines].index(model_name)
        self._engines[shown] = (metrics, lambda: snapshot().after(before()))

    def add_health(self, model_name: str, health: Callable[[], ModelHealth]) -> None:
        """Show how an engine is getting on, as `health` says when somebody scrapes."""
        self._healths[model_name] = health
        self._stalls.setdefault(model_name, 0)

    def count_stall(self, model_name: str) -> None:
        """Count one engine that has stopped making steps; called by the watchdog."""
        self._stalls[model_name] = self._stalls.get(model_name, 0) + 1

    def add_upstreams(self, statuses: Callable[[], Sequence[UpstreamStatus]]) -> None:
        """Show the remote upstreams, as `statuses` tells when somebody scrapes."""
        self._upstreams = statuses

    def add_accounts(self, stats: Callable[[], AdmissionStats]) -> None:
        """Show what the gateway's accounts decide."""
        self._accounts = stats

    def set_rate(self, nano_per_hour: int) -> None:
        """Say what this machine costs, so that the engines' time can be shown as money."""
        self._nano_per_hour = nano_per_hour

    def add_audit(self, stats: Callable[[], AuditStats | None]) -> None:
        """Show what the audit log does."""
        self._audit = stats

    def watch_kernels(self, failed: Callable[[], Sequence[str]]) -> None:
        """Show which GPU kernels slower ops stand in for, as `failed` names them."""
        self._failed_kernels = failed

    def set_startup(self, phases_s: dict[str, float]) -> None:
        """Record how long each phase of the start took."""
        self._startup_s = dict(phases_s)

    def render(self) -> tuple[bytes, str]:
        """Return the Prometheus text and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterable[Metric]:
        """Yield every family. Called by prometheus-client."""
        engines = [(metrics, snapshot()) for metrics, snapshot in self._engines]
        snapshots = [(metrics.model_name, snapshot) for metrics, snapshot in engines]
        yield from _gauges(engines)
        yield from _counters(engines)
        yield from _histograms(engines)
        yield from engine_families(snapshots, self._nano_per_hour)
        yield from slo_families([(metrics.model_name, metrics.slo) for metrics, _ in engines])
        yield from tenant_families([(metrics.model_name, metrics.tenants) for metrics, _ in engines])
        yield from self._health_families()
        yield from upstream_families(self._upstreams())
        yield from tier_families(snapshots)
        startup = GaugeMetricFamily("headrace_startup_seconds", "Time each phase of the start took", labels=("phase",))
        for phase, seconds in self._startup_s.items():
            startup.add_metric((phase,), seconds)
        yield startup
        network = CounterMetricFamily("headrace_network_thread_cpu_seconds", "CPU time of the thread that serves HTTP")
        network.add_metric((), time.thread_time())  # whoever renders is that thread
        yield network
        fallbacks = GaugeMetricFamily(
            "headrace_kernel_fallbacks", "1 for each GPU kernel that a slower op stands in for", labels=("kernel",)
        )
        for kernel in self._failed_kernels():
            fallbacks.add_metric((kernel,), 1)
        yield fallbacks
        yield from self.door.families()
        decided = self._accounts()
        yield from accounts.families(decided)
        yield from charge_families(decided.charged_nano, decided.budget_used)
        audit = self._audit()
        if audit is not None:
            yield from audit_families(audit)

    def _health_families(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("headrace_health", "1 for the state the engine is in", labels=(*_LABELS, "state"))
        stuck = GaugeMetricFamily("headrace_stuck_requests", "Live requests without progress", labels=_LABELS)
        waiting = GaugeMetricFamily("headrace_oldest_waiting_seconds", "Age of the oldest waiting", labels=_LABELS)
        stalls = CounterMetricFamily("headrace_stalls", "Times the engine stopped making steps", labels=_LABELS)
        for name, read in self._healths.items():
            health = read()
            for each in HealthState:
                state.add_metric((name, each.value), float(health.state is each))
            stuck.add_metric((name,), health.num_stuck)
            waiting.add_metric((name,), health.oldest_waiting_s or 0.0)
            stalls.add_metric((name,), self._stalls[name])
        yield from (state, stuck, waiting, stalls)


_Engines = list[tuple[ModelMetrics, EngineSnapshot]]


def _gauges(engines: _Engines) -> Iterator[Metric]:
    table: tuple[tuple[str, str, Callable[[EngineSnapshot], float]], ...] = (
        ("vllm:num_requests_running", "Sequences that hold KV blocks", lambda s: s.num_running),
        ("vllm:num_requests_waiting", "Sequences in the queue", lambda s: s.num_waiting),
        (
            "headrace_recompute_ratio",
            "Tokens computed again after preemption, of all computed, 0 to 1",
            lambda s: s.recompute_ratio,
        ),
        (
            "headrace_reserved_output_ratio",
            "Share of max_tokens kept free for running answers, as learned",
            lambda s: s.reserved_ratio,
        ),
        ("headrace_paused_sequences", "Sequences that wait for a slow reader", lambda s: s.num_paused),
        ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", lambda s: s.kv_usage),
        ("headrace_pinned_blocks", "KV blocks that pinned prefixes hold", lambda s: s.num_pinned_blocks),
        ("headrace_engine_up", "1 while the engine lives", lambda s: 0.0 if s.is_dead else 1.0),
    )
    for name, text, read in table:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        for metrics, snapshot in engines:
            family.add_metric((metrics.model_name,), read(snapshot))
        yield family


def _counters(engines: _Engines) -> Iterator[Metric]:
    table: tuple[tuple[str, str, Callable[[ModelMetrics, EngineSnapshot], float]], ...] = (
        ("vllm:prompt_tokens", "Prompt tokens computed", lambda m, s: s.prompt_tokens),
        ("vllm:generation_tokens", "Tokens generated", lambda m, s: s.generated_tokens),
        ("vllm:num_preemptions", "Sequences that gave their blocks back", lambda m, s: s.num_preemptions),
        ("vllm:prompt_tokens_cached", "Prompt tokens not computed again", lambda m, s: m.cached_tokens),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", lambda m, s: s.prefix_queries),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", lambda m, s: s.prefix_hits),
        ("headrace_swaps", "Preemptions that kept their blocks in host memory", lambda m, s: s.num_swaps),
        ("headrace_recomputed_tokens", "Tokens computed again after preemption", lambda m, s: s.recomputed_tokens),
        ("headrace_pauses", "Sequences that had to wait for a slow reader", lambda m, s: s.num_pauses),
        ("headrace_steps", "Engine steps", lambda m, s: s.num_steps),
        ("headrace_device_seconds", "Time steps spent computing", lambda m, s: m.device_s),
        ("headrace_loop_seconds", "Time steps took in all", lambda m, s: m.loop_s),
    )
    for name, text, read in table:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for metrics, snapshot in engines:
            family.add_metric((metrics.model_name,), read(metrics, snapshot))
        yield family
    success = CounterMetricFamily(
        "vllm:request_success", "Choices that ended, by reason", labels=(*_LABELS, "finished_reason")
    )
    refused = CounterMetricFamily(
        "headrace_refused_requests", "Requests refused at the door", labels=(*_LABELS, "code")
    )
    for metrics, _ in engines:
        for reason, count in metrics.finished.items():
            success.add_metric((metrics.model_name, reason), count)
        for code, count in metrics.refused.items():
            refused.add_metric((metrics.model_name, code), count)
    yield success
    yield refused


def _histograms(engines: _Engines) -> Iterator[Metric]:
    table: tuple[tuple[str, str, Callable[[ModelMetrics], Histogram]], ...] = (
        ("vllm:time_to_first_token_seconds", "Arrival to first token", lambda m: m.ttft),
        ("vllm:inter_token_latency_seconds", "Gap between tokens of a choice", lambda m: m.itl),
        ("vllm:request_time_per_output_token_seconds", "Mean gap between an answer's tokens", lambda m: m.tpot),
        ("vllm:e2e_request_latency_seconds", "Arrival to end", lambda m: m.e2e),
        ("vllm:request_queue_time_seconds", "Arrival to first step", lambda m: m.queue),
        ("vllm:request_prefill_time_seconds", "First step to first token", lambda m: m.prefill),
        ("vllm:request_decode_time_seconds", "First token to end", lambda m: m.decode),
        ("vllm:request_inference_time_seconds", "First step to end", lambda m: m.inference),
        ("vllm:request_prompt_tokens", "Tokens of a request's prompt", lambda m: m.prompt_lengths),
        ("vllm:request_generation_tokens", "Tokens of a request's answers", lambda m: m.answer_lengths),
        ("vllm:request_max_num_generation_tokens", "Tokens of a request's longest answer", lambda m: m.longest_answers),
        ("vllm:request_params_max_tokens", "Tokens that an answer might have had", lambda m: m.max_tokens),
        ("vllm:request_params_n", "Answers that a request wants", lambda m: m.num_choices),
        ("vllm:iteration_tokens_total", "Tokens computed in a step", lambda m: m.step_tokens),
    )
    for name, text, read in table:
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        for metrics, _ in engines:
            histogram = read(metrics)
            family.add_metric((metrics.model_name,), histogram.buckets(), histogram.sum)
        yield family
