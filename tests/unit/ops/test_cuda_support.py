"""Why a GPU cannot be used is said without torch, with a remedy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from headrace.ops.cuda import support
from headrace.ops.cuda.support import DeviceFacts, has_device, problem, too_old, unfit, unserved, unserved_early_launch


def test_old_packages_are_named_with_what_is_needed() -> None:
    assert too_old("torch", "2.13.0+cu130", (2, 11)) is None
    assert too_old("torch", "2.11.0a0", (2, 11)) is None
    problem = too_old("triton", "3.5.1", (3, 6))
    assert problem is not None
    assert "3.5.1" in problem
    assert "3.6 or newer" in problem


def test_an_old_gpu_is_named_with_its_capability() -> None:
    assert unfit(DeviceFacts("H200", (9, 0), 1, 1)) is None
    problem = unfit(DeviceFacts("T4", (7, 5), 1, 1))
    assert problem is not None
    assert "7.5" in problem
    assert "native" in problem


def test_asking_imports_no_torch() -> None:
    code = (
        "import sys; from headrace.app import backends; from headrace.ops.cuda.support import has_device, problem; "
        "has_device() or problem(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Machine:
    """A machine whose devices, packages and compiler are as a test says; at first all is well."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.patch, self.root = patch, root
        patch.setattr(support, "_ROOT", root)
        patch.setenv("CC", "cc")
        self.put("dev/nvidiactl")
        headers = self.put("include/Python.h").parent
        patch.setattr(support.sysconfig, "get_paths", lambda scheme: {"include": str(headers)})
        self.capability = (9, 0)
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            mem_get_info=lambda: (1, 1),
            get_device_capability=lambda: self.capability,
            get_device_name=lambda: "a GPU",
        )
        self.install("torch", "2.11.0+cu130", version=SimpleNamespace(cuda="13.0"), cuda=self.cuda)
        self.install("triton", "3.6.0")

    def put(self, path: str) -> Path:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).touch()
        return self.root / path

    def install(self, name: str, release: str, **attributes: object) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for key, value in {"__version__": release, **attributes}.items():
            setattr(module, key, value)
        self.patch.setitem(sys.modules, name, module)

    def remove_device(self) -> None:
        (self.root / "dev/nvidiactl").unlink()


def in_a_container(machine: Machine) -> None:
    machine.remove_device()
    machine.put("proc/driver/nvidia/version")
    machine.patch.setenv("NVIDIA_VISIBLE_DEVICES", "all")  # as every image of CUDA has it


def without_compiler(machine: Machine) -> None:
    machine.patch.delenv("CC")
    machine.patch.setattr(support.shutil, "which", lambda name: None)


def without_headers(machine: Machine) -> None:
    (machine.root / "include/Python.h").unlink()


def with_old_torch(machine: Machine) -> None:
    machine.install("torch", "2.9.1+cu128")


def with_old_triton(machine: Machine) -> None:
    machine.install("triton", "3.5.1")


def with_torch_for_cpus(machine: Machine) -> None:
    machine.install("torch", "2.11.0+cpu", version=SimpleNamespace(cuda=None))


def with_hidden_gpus(machine: Machine) -> None:
    machine.cuda.is_available = lambda: False


def with_an_old_gpu(machine: Machine) -> None:
    machine.capability = (7, 5)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (Machine.remove_device, "shows no NVIDIA GPU .*: install its driver, or use 'native'"),
        (in_a_container, "container was given no GPU .*: start it with '--gpus all'"),
        (without_compiler, "no C compiler.*: apt-get install gcc"),
        (without_headers, r"no Python\.h: apt-get install python3-dev"),
        (with_old_torch, r"torch is 2\.9\.1.* needs 2\.11 or newer: pip install -U torch"),
        (with_old_triton, r"triton is 3\.5\.1.* needs 3\.6 or newer: pip install -U triton"),
        (with_torch_for_cpus, "built without CUDA: install a CUDA build"),
        (with_hidden_gpus, "newer than the driver .* or CUDA_VISIBLE_DEVICES hides"),
        (with_an_old_gpu, r"a GPU has compute capability 7\.5; .* use 'native'"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_keeps_a_gpu_from_working_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[Machine], None], says: str
) -> None:
    machine = Machine(monkeypatch, tmp_path)
    assert problem() is None
    break_it(machine)
    found = problem()
    assert found is not None
    assert re.search(says, found), found


@pytest.mark.parametrize("path", ["dev/nvidiactl", "dev/nvidia0", "dev/nvidia12", "dev/dxg", "dev/nvhost-gpu"])
def test_a_device_file_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(support, "_ROOT", tmp_path)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    assert not has_device()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia-modeset").touch()
    assert not has_device()
    (tmp_path / path).touch()
    assert has_device()


def test_fp8_is_refused_where_no_unit_computes_it() -> None:
    old = DeviceFacts("A100", (8, 0), 1, 1)
    assert unserved(old, "int8") is None
    assert unserved(DeviceFacts("L4", (8, 9), 1, 1), "fp8") is None
    found = unserved(old, "fp8")
    assert found is not None
    assert "A100 has compute capability 8.0" in found
    assert "'int8'" in found


def test_early_launch_is_refused_where_the_gpu_knows_none() -> None:
    assert unserved_early_launch(DeviceFacts("H200", (9, 0), 1, 1)) is None
    found = unserved_early_launch(DeviceFacts("L4", (8, 9), 1, 1))
    assert found is not None
    assert "L4 has compute capability 8.9" in found
    assert "leave it false" in found
