"""Where kernels run in these tests: on the GPU if there is one, else on the CPU in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

_IS_INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("torch", "triton"))
if _IS_INSTALLED:
    import torch

    # Read when kernels are defined, so it is set before the first of them is imported.
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """The interpreter computes with numpy, which warns where a GPU gives infinity."""
    config.addinivalue_line("filterwarnings", "ignore:(overflow|divide by zero|invalid value) enc:RuntimeWarning")


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _kernels_that_do_not_fall_back() -> Iterator[None]:
    """A kernel that failed would be compared with the plain op it gave way to."""
    yield
    from headrace.ops.cuda.launching import failed_kernels

    assert failed_kernels() == ()
