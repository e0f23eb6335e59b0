"""Small ledgers for the tests of the audit: rows with everything set, of which a test changes what it is about."""

from __future__ import annotations

from typing import Any

from headrace.econ import EngineBuild, EngineSpan
from headrace.econ.stack import Ledger, RequestRow

S = 10**9
HOUR = 3600 * S
RATE = 3600 * S  # nano-dollars per hour: a nano-dollar a nanosecond


def request(**changes: Any) -> RequestRow:
    values: dict[str, Any] = {
        **{"settled_ns": 10 * S, "tenant": "a", "model": "m", "outcome": "stop", "input_uncached": 100},
        **{
            "cache_read": 0,
            "cache_write": 0,
            "cache_write_1h": 0,
            "output_text": 10,
            "output_reasoning": 0,
            "engine_ns": 0,
        },
        **{
            "machine_nano": 0,
            "cost_nano": None,
            "reported_nano": None,
            "engine": "e1",
            "prompt_ns": 0,
            "cached_nano": None,
            "rent_ns": 0,
            "rent_nano": None,
        },
        **{"output_nano": None, "admission_ns": 0, "queue_ns": 0, "prefill_ns": 0, "decode_ns": 0, "upstream_ns": 0},
        **{"reading_ns": 0, "ttft_ns": 0, "num_preemptions": 0, "is_stream": 1, "is_repeatable": 0},
        **{"most_output": 100, "request_digest": None, "prefix_digests": ""},
    }
    return RequestRow(**{**values, **changes})


def remote(**changes: Any) -> RequestRow:
    values: dict[str, Any] = {"model": "far", "engine": None, "machine_nano": None, "upstream_ns": S}
    return request(**{**values, **changes})


def span(**changes: Any) -> EngineSpan:
    """A span whose idle time is what its parts leave, and whose pool costs a nano-dollar a nanosecond."""
    values: dict[str, Any] = {
        **{
            "id": "e1/1",
            "engine": "e1",
            "model": "m",
            "from_ns": 0,
            "total_ns": 100,
            "loading_ns": 0,
            "requests_ns": 0,
        },
        **{"recomputed_ns": 0, "abandoned_ns": 0, "nano_per_hour": RATE, "rate_source": "config"},
    }
    values.update(changes)
    busy = sum(values[name] for name in ("loading_ns", "requests_ns", "recomputed_ns", "abandoned_ns"))
    values.setdefault("idle_ns", values["total_ns"] - busy)
    values.setdefault("until_ns", values["from_ns"] + values["total_ns"])
    values.setdefault("pool_nano", values["total_ns"] - values["requests_ns"])
    return EngineSpan(**values)


def build(**changes: Any) -> EngineBuild:
    values: dict[str, Any] = {
        **{"backend": "native", "weights": "auto", "kv_dtype": "bf16", "machine": "cpu"},
        **{"threads": 2, "num_weights": 1000, "weight_bytes": 2000, "kv_bytes": 10, "kv_tokens": 10},
        "max_num_seqs": 8,
    }
    return EngineBuild(**{**values, **changes})


def ledger(
    requests: list[RequestRow], spans: list[EngineSpan] | None = None, others_ns: dict[str, int] | None = None
) -> Ledger:
    spans = [span(requests_ns=sum(row.engine_ns for row in requests))] if spans is None else spans
    return Ledger(
        since_ns=0,
        until_ns=40 * 24 * HOUR,
        requests=requests,
        spans=spans,
        builds={each.engine: build() for each in spans},
        others_ns=others_ns or {},
    )
