"""Imports go down the floors only; heavy third parties have one home. Annotation-only imports count."""

from __future__ import annotations

import sys
from typing import Any

# Higher may import lower. Names on one line never import each other; ARCHITECTURE.md draws the same table.
FLOORS = """
    cli
    bench
    evals
    deploy
    app
    dashboard
    planner
    sim
    api | gateway
    engine
    sched | executor
    spec
    kv | grammar | model
    quant | lora | sampling
    ops | text | econ | autoscale | obs | testing
    core
"""

# Third party → where it may be imported, as module prefixes below `headrace.`.
HOMES = {
    "ray": ["deploy"],
    "triton": ["ops.cuda"],
    "torch": ["ops.cuda", "executor.cuda"],
    "transformers": [],
    "starlette": ["api", "dashboard", "gateway.admin"],
    "uvicorn": ["app"],
    "uvloop": ["app"],
    "httpx": ["bench", "cli", "model.store"],
    "aiohttp": ["gateway.upstream"],
    "yarl": ["gateway.upstream"],
    "prometheus_client": ["obs"],
    "opentelemetry": ["obs"],
    "jinja2": ["text"],
    "tokenizers": ["text"],
    "rich": ["cli", "bench"],
    "numpy": [
        *["ops", "text", "quant", "lora", "sampling", "model"],
        *["grammar", "spec", "executor", "app.scoring", "bench", "evals", "testing"],
    ],
    "redis": ["kv.transfer"],
    "genai_prices": ["gateway.budgets.price_import"],
    "pyarrow": ["cli.ledger_export"],
    "asyncpg": ["gateway"],
    "cryptography": ["gateway.audit.content"],
    "httptools": ["app.http_protocol", "bench"],
    # Peers run in their own environments; `runner` is the script beside the peer's own.
    "llama_cpp": ["bench.peers"],
    "openvino": ["bench.peers"],
    "openvino_genai": ["bench.peers"],
    "vllm": ["bench.peers"],
    "runner": ["bench.peers"],
}


def floor_of() -> dict[str, int]:
    lines = FLOORS.split("\n")[::-1]
    return {name.strip(): height for height, line in enumerate(lines) for name in line.split("|") if name.strip()}


def package_of(module: str) -> str | None:
    """The floor's name in `headrace.<package>…`, None for the root and for third parties."""
    parts = module.split(".")
    return parts[1] if parts[0] == "headrace" and len(parts) > 1 else None


def test_every_package_stands_on_a_floor(modules: list[Any]) -> None:
    homeless = {m.where for m in modules if (p := package_of(m.name)) and p not in floor_of() and p != "__main__"}
    assert not homeless


def test_imports_go_down_only(modules: list[Any]) -> None:
    floors = floor_of()
    wrong = []
    for module in modules:
        here = package_of(module.name)
        if here not in floors:
            continue  # the root package shows the public names of every floor
        for imported in module.imports():
            there = package_of(imported.module)
            if there in floors and there != here and floors[there] >= floors[here]:
                wrong.append(f"{module.where}:{imported.line} {here} (floor {floors[here]}) imports {imported.module}")
    assert not wrong, "\n".join(wrong)


def test_no_floor_imports_the_root_package(modules: list[Any]) -> None:
    names = {m.name for m in modules}
    wrong = []
    for module in modules:
        if package_of(module.name) in (None, "__main__"):
            continue
        for imported in module.imports():
            head, _, rest = imported.module.partition(".")
            is_name = rest not in ("", "__version__") and "." not in rest and imported.module not in names
            if head == "headrace" and is_name:
                wrong.append(f"{module.where}:{imported.line} imports '{rest}' from the root package")
    assert not wrong, "\n".join(wrong)


def test_heavy_third_parties_have_one_home(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        for imported in module.imports():
            homes = HOMES.get(imported.module.split(".")[0])
            inside = module.name.removeprefix("headrace.")
            if homes is not None and not any(inside == home or inside.startswith(home + ".") for home in homes):
                wrong.append(f"{module.where}:{imported.line} imports {imported.module}; its home is {homes}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_core_needs_only_the_standard_library_and_msgspec(modules: list[Any]) -> None:
    allowed = {*sys.stdlib_module_names, "msgspec", "headrace"}
    wrong = [
        f"{module.where}:{imported.line} imports {imported.module}"
        for module in modules
        if package_of(module.name) == "core"
        for imported in module.imports()
        if imported.module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_only_known_third_parties_are_imported(modules: list[Any]) -> None:
    allowed = {*sys.stdlib_module_names, "msgspec", "headrace", *HOMES}
    wrong = [
        f"{module.where}:{imported.line} imports {imported.module}"
        for module in modules
        for imported in module.imports()
        if imported.module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_sched_and_executor_meet_only_through_steps(modules: list[Any]) -> None:
    """Deciding never sees tensors."""
    wrong = [
        f"{module.where}:{imported.line} imports {imported.module}"
        for module in modules
        if package_of(module.name) in ("sched", "kv", "engine", "core", "econ", "autoscale")
        for imported in module.imports()
        if imported.module.split(".")[0] in ("numpy", "torch", "triton")
    ]
    assert not wrong, "\n".join(wrong)
