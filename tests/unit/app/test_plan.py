"""Plans: what is derived, why, and what is refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.app.derived import Derived
from headrace.app.hardware import Hardware, detect
from headrace.app.plan import MIB, ModelFacts, resolve
from headrace.core.errors import ConfigError, OutOfMemory
from headrace.core.request import Reach
from headrace.core.settings import EngineSettings

BACKEND = Derived("reference", "asked for")
FACTS = ModelFacts(name="m", max_positions=1024, weight_bytes=100 * MIB, kv_token_bytes=1024)


def machine(available_mib: int = 1000, cores: int = 4) -> Hardware:
    return Hardware(
        cpu="c", architecture="x86_64", cores=cores, isa=(), memory_total=available_mib * MIB,
        memory_available=available_mib * MIB, memory_limit=None, extras=(), python="3",
    )  # fmt: skip


def engine(**changes: Any) -> EngineSettings:
    return msgspec.structs.replace(EngineSettings(), **changes)


def test_pool_holds_all_full_contexts_when_memory_is_plenty() -> None:
    plan = resolve(engine(max_num_seqs=2), machine(), FACTS, BACKEND)
    assert plan.num_blocks.value == 2 * 1024 // 32
    assert plan.max_context.value == 1024
    assert "full contexts" in plan.num_blocks.reason


def test_pool_takes_a_quarter_of_what_is_free() -> None:
    plan = resolve(engine(max_num_seqs=1000), machine(500), FACTS, BACKEND)
    assert plan.kv_bytes.value == 100 * MIB
    assert "400 MiB" in plan.num_blocks.reason


def test_settings_win_over_derivation() -> None:
    plan = resolve(engine(kv_memory_mib=10, threads=3, max_context=512), machine(), FACTS, BACKEND)
    assert (plan.num_blocks.value, plan.threads.value, plan.max_context.value) == (320, 3, 512)
    assert plan.threads.reason == "engine.threads"


@pytest.mark.parametrize(
    ("backend", "asked", "most"),
    [
        ("native", None, 1024),
        ("reference", None, 1024),
        ("cuda", None, 512),
        ("cuda", 700, 700),
        ("native", 300, 300),
        ("native", 9000, 2048),
    ],
)
def test_prompts_are_kept_short_beside_what_decodes(backend: str, asked: int | None, most: int) -> None:
    settings = engine(max_step_tokens=2048, chunk_tokens=asked)
    assert resolve(settings, machine(), FACTS, Derived(backend, "asked for")).chunk_tokens.value == most


def test_a_chunk_is_no_longer_than_a_step() -> None:
    plan = resolve(engine(max_step_tokens=100), machine(), FACTS, Derived("cuda", "asked for"))
    assert plan.chunk_tokens.value == 100


def test_threads_follow_cores() -> None:
    assert resolve(engine(), machine(cores=7), FACTS, BACKEND).threads.value == 7


def test_context_shrinks_to_what_the_pool_holds() -> None:
    plan = resolve(engine(kv_memory_mib=1, block_size=16), machine(), FACTS, BACKEND)
    assert plan.max_context.value == 1024
    small = resolve(engine(kv_memory_mib=1), machine(), msgspec_like(FACTS, kv_token_bytes=2048), BACKEND)
    assert small.max_context.value == 512
    assert "KV pool" in small.max_context.reason


def msgspec_like(facts: ModelFacts, **changes: int) -> ModelFacts:
    values = {name: getattr(facts, name) for name in facts.__dataclass_fields__}
    return ModelFacts(**{**values, **changes})


@pytest.mark.parametrize(
    ("settings", "available_mib"),
    [({}, 90), ({}, 100), ({"kv_memory_mib": 901}, 1000)],
)
def test_too_little_memory_is_told_with_numbers(settings: dict[str, int], available_mib: int) -> None:
    with pytest.raises(OutOfMemory) as caught:
        resolve(engine(**settings), machine(available_mib), FACTS, BACKEND)
    assert "needs 100 MiB for weights" in caught.value.message
    assert f"{available_mib:,} MiB are available" in caught.value.message


def test_context_beyond_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained for 1,024"):
        resolve(engine(max_context=2048), machine(), FACTS, BACKEND)


def test_every_value_has_a_reason() -> None:
    rows = list(resolve(engine(), machine(), FACTS, BACKEND).rows())
    assert [row for row in rows if not all(row)] == []
    assert {"backend", "threads", "num_blocks", "max_context", "weight", "kv"} <= {row[0] for row in rows}


def test_this_machine_can_be_looked_at() -> None:
    here = detect()
    assert here.cores >= 1
    assert 0 < here.memory_available <= here.memory_total
    assert here.without(here.memory_total).memory_available == 0


def test_host_memory_below_the_pool_is_there_when_disk_or_redis_need_it() -> None:
    assert resolve(engine(), machine(), FACTS, BACKEND).kv_ram_bytes.value == 0
    for changes in ({"kv_disk_dir": "/d"}, {"kv_redis_url": "redis://h"}):
        ram = resolve(engine(**changes), machine(), FACTS, BACKEND).kv_ram_bytes
        assert ram.value == 900 * MIB // 16
        assert "disk and Redis" in ram.reason
    assert resolve(engine(kv_disk_dir="/d"), machine(100_000), FACTS, BACKEND).kv_ram_bytes.value == 256 * MIB
    assert resolve(engine(kv_ram_bytes=5 * MIB), machine(), FACTS, BACKEND).kv_ram_bytes.value == 5 * MIB


def test_the_pool_leaves_room_for_host_memory_below_it() -> None:
    plan = resolve(engine(max_num_seqs=1000, kv_ram_bytes=200 * MIB), machine(500), FACTS, BACKEND)
    assert plan.kv_bytes.value == 50 * MIB
    with pytest.raises(OutOfMemory):
        resolve(engine(kv_ram_bytes=500 * MIB), machine(500), FACTS, BACKEND)


def test_tiers_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.prefix_cache is off"):
        resolve(engine(kv_disk_dir="/d", prefix_cache=False), machine(), FACTS, BACKEND)
    with pytest.raises(ConfigError, match="room for at least 8 of them: 262,144"):
        resolve(engine(kv_disk_dir="/d", kv_ram_bytes=1000), machine(), FACTS, BACKEND)


def test_a_window_bounds_what_a_sequence_holds_and_frees_its_length() -> None:
    settings = engine(attention_window=252, max_context=100_000, max_num_seqs=2, max_step_tokens=64)
    plan = resolve(settings, machine(), FACTS, BACKEND)
    assert plan.reach.value == Reach(window=252, num_sinks=4)
    assert plan.max_context.value == 100_000
    assert plan.num_blocks.value == 2 * (1 + 8 + 2 + 2)  # sinks, window, its two ends, a step
    assert ("reach", "first 4 and last 252 tokens", plan.reach.reason) in plan.rows()


def test_without_a_window_no_context_is_longer_than_the_trained_one() -> None:
    with pytest.raises(ConfigError, match=r"trained for 1,024; lower it, or set engine\.attention_window"):
        resolve(engine(max_context=2000), machine(), FACTS, BACKEND)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_window": 1021}, "together they may be no more than the 1,024 tokens"),
        ({"attention_window": 100, "max_context": 2**20 + 1}, "positions are served up to 1,048,576"),
    ],
)
def test_windows_and_lengths_that_cannot_be_served_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(engine(**changes), machine(), FACTS, BACKEND)


def test_a_pool_too_small_for_a_window_is_refused() -> None:
    with pytest.raises(OutOfMemory, match="for KV"):
        resolve(engine(attention_window=900, max_context=5000, kv_memory_mib=1), machine(), bulky(), BACKEND)


def test_a_model_of_windows_alone_is_not_bound_by_the_pool() -> None:
    facts = msgspec_like(FACTS, widest_window=128)
    plan = resolve(engine(kv_memory_mib=1, block_size=16), machine(), msgspec_like(facts, kv_token_bytes=2048), BACKEND)
    assert plan.num_blocks.value * 16 < plan.max_context.value == 1024


def bulky() -> ModelFacts:
    return msgspec_like(FACTS, kv_token_bytes=4096)
