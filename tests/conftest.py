"""Real components: models, pulled once into the user's cache by the package itself; a Postgres where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from headrace.model.store import Store
from tests.postgres import find_binaries, new_schema, running_postgres

# A test fails by what it finds: a machine that stands still for a while is no finding.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pulled(name: str) -> Path:
    cache = os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")
    return Store(Path(cache)).pull(name).path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model: llama family, Q4_1, byte-level BPE."""
    return pulled("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """A gemma3 model: Q4_K_M, SentencePiece, local and global layers."""
    return pulled("gemma3-270m")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no Postgres here; on Debian: apt-get install postgresql")
    with running_postgres(binaries) as url:
        yield url


@pytest.fixture
def fresh_postgres(postgres_url: str) -> str:
    """An empty schema of its own: a database each would take a third of a second."""
    return new_schema(postgres_url)
