"""The comparison's arithmetic, its processes and what it writes, on peers made of a few lines of Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from headrace.bench.metrics import Distribution, LoadReport
from headrace.bench.peers.compare import Measurement, best_ratio, run_rounds
from headrace.bench.peers.export import export_hf
from headrace.bench.peers.line_up import Ground, line_up
from headrace.bench.peers.page import render_result
from headrace.bench.peers.process import PeerError, PeerProcess, PeerSpec
from headrace.bench.peers.result import Participant, PeersResult, best_other, http_ratio, task_ratio
from headrace.bench.peers.server import ServerRun
from headrace.bench.report import Bar, Chart, render_page
from headrace.bench.token_prompts import TokenPrompts
from headrace.evals.compare import Comparison, Interval
from headrace.model import open_checkpoint
from headrace.testing.checkpoints import write_checkpoint
from headrace.text import load_tokenizer

PEER = """
import sys
sys.path.insert(0, RUNNERS)
import runner

class Clock:
    now_s = 0.0
    def perf_counter(self):
        return self.now_s
    def sleep(self, seconds):
        self.now_s += seconds

clock = runner.time = Clock()  # a machine that is held up would spoil the ratio

class Sleeper:
    version, settings = "sleeper 1", "none"
    def __init__(self, config):
        self.step_s = config["step_s"]
    def generate(self, prompts, output_tokens):
        clock.sleep(self.step_s * (len(prompts[0]) / 64 + output_tokens))
    def logits(self, chunks, path):
        raise RuntimeError("no logits here")

runner.main(Sleeper)
"""


def spec(tmp_path: Path, name: str, source: str, **config: object) -> PeerSpec:
    script = tmp_path / f"{name}.py"
    runners = Path(sys.modules[PeerProcess.__module__].__file__ or "").parent
    script.write_text(source.replace("RUNNERS", repr(str(runners))))
    return PeerSpec(
        name=name, family=name, weights="none", python=Path(sys.executable), script=str(script), config=config
    )


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[list[PeerProcess]]:
    peers = [
        PeerProcess(spec(tmp_path, name, PEER, step_s=step_s), tmp_path / f"{name}.log")
        for name, step_s in (("headrace", 0.0005), ("slow", 0.002))
    ]
    yield peers
    for peer in peers:
        peer.close()


def test_engines_are_measured_in_turn_and_compared_round_by_round(sleepers: list[PeerProcess]) -> None:
    said: list[str] = []
    found, failures = run_rounds(sleepers, TokenPrompts(1000), batches=[2], rounds=2, progress=said.append)
    assert failures == []
    assert {(m.engine, m.task, len(m.rounds)) for m in found} == {
        (name, task, 2) for name in ("headrace", "slow") for task in ("prefill 512", "decode batch 2")
    }
    ratio = best_ratio(found, "decode batch 2", "headrace")
    assert ratio is not None
    assert ratio[1] == "slow"
    assert ratio[0] == pytest.approx(4.0)
    assert [line.split(" · ")[2] for line in said[:2]] == ["headrace", "slow"]


def test_a_request_that_fails_leaves_the_peer_answering(sleepers: list[PeerProcess]) -> None:
    with pytest.raises(PeerError, match="no logits here"):
        sleepers[0].ask(task="logits", chunks=[[1]], path="x")
    assert sleepers[0].ask(task="info")["version"] == "sleeper 1"


def test_a_peer_that_cannot_start_is_told_in_its_own_words(tmp_path: Path) -> None:
    broken = spec(tmp_path, "broken", "import sys\nsys.exit('cannot find my tiles')")
    with pytest.raises(PeerError, match="cannot find my tiles"):
        PeerProcess(broken, tmp_path / "broken.log")


def test_the_ratio_is_the_median_of_the_rounds_not_a_ratio_of_medians() -> None:
    ours = Measurement(engine="headrace", family="headrace", weights="w", task="t", rounds=(10.0, 40.0, 30.0))
    theirs = Measurement(engine="other", family="other", weights="w", task="t", rounds=(10.0, 10.0, 15.0))
    assert best_ratio([ours, theirs], "t", "headrace") == (2.0, "other")
    assert best_ratio([ours], "t", "headrace") is None


def test_the_page_escapes_what_engines_say_of_themselves() -> None:
    bar = Bar(label="<script>", value=1.0, low=0.5, high=1.5, text="1")
    page = render_page("t", [("Machine", "a & b")], [Chart(title="c", unit="u", bars=(bar,))], ["lost <b>"])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_an_exported_checkpoint_opens_with_the_same_weights(tmp_path: Path, dtype: str) -> None:
    source = write_checkpoint(tmp_path / "source", "llama", rope_scaling=None)
    with closing(open_checkpoint(source)) as original:
        tokenizer = load_tokenizer(original.text_files)
        exported = export_hf(original, tokenizer, tmp_path / "out", "F32" if dtype == "F32" else "BF16")
        with closing(open_checkpoint(exported)) as copy:
            assert sorted(copy.names()) == sorted(original.names())
            for name in original.names():
                want, got = original.tensor(name).to_float(), copy.tensor(name).to_float()
                np.testing.assert_allclose(got, want, rtol=0 if dtype == "F32" else 2**-8, atol=0)


def scored(kl: float) -> Comparison:
    one = Interval(1.0, 1.0, 1.0)
    return Comparison(
        num_tokens=9, mean_kl=Interval(kl, kl, kl), kl_p999=kl, ppl_base=1.0, ppl_test=1.0, ppl_ratio=one, same_top=one,
        delta_p_rms=0.0,
    )  # fmt: skip


def load(rate: float, *, ttft_ms: float, itl_ms: float) -> LoadReport:
    nothing = Distribution(count=0)
    return LoadReport(
        duration_s=1.0, completed=1, failed=0, prompt_tokens=1, output_tokens=1, output_tokens_per_s=rate,
        requests_per_s=1.0, ttft_ms=Distribution(count=1, p99=ttft_ms), itl_ms=Distribution(count=1, p99=itl_ms),
        tpot_ms=nothing, e2e_ms=nothing,
    )  # fmt: skip


@pytest.fixture
def result() -> PeersResult:
    def part(name: str, family: str, weights: str) -> Participant:
        return Participant(name=name, family=family, weights=weights, ready_s=1.0)

    def run(name: str, family: str, weights: str, *reports: LoadReport) -> ServerRun:
        shares = (0.015,) * len(reports)
        return ServerRun(
            server=name, family=family, weights=weights, num_clients=16, reports=reports, client_cpu=shares
        )

    http = (
        run("headrace", "headrace", "as stored", load(500, ttft_ms=9, itl_ms=150), load(900, ttft_ms=9, itl_ms=150)),
        run("headrace int8", "headrace", "int8", load(700, ttft_ms=8, itl_ms=80), load(700, ttft_ms=8, itl_ms=80)),
        run("vllm serve", "vllm", "bf16", load(250, ttft_ms=11, itl_ms=119), load(300, ttft_ms=11, itl_ms=119)),
        run("coarse", "coarse", "Q4_0", load(800, ttft_ms=1, itl_ms=1), load(800, ttft_ms=1, itl_ms=1)),
    )

    def speed(name: str, family: str, weights: str, rate: float) -> Measurement:
        return Measurement(engine=name, family=family, weights=weights, task="t", rounds=(rate,))

    return PeersResult(
        date="today", headrace="1", machine="m", cores=2, isa=("avx2",), read_gb_per_s=1.0, model="m", rounds=1,
        participants=(
            part("headrace", "headrace", "as stored"), part("headrace int8", "headrace", "int8"),
            part("vllm bf16", "vllm", "bf16"), part("coarse Q4_0", "coarse", "Q4_0"),
        ),
        quality={"headrace": scored(0.006), "headrace int8": scored(0.008), "coarse Q4_0": scored(0.6)},
        measurements=(speed("headrace", "headrace", "as stored", 30.0), speed("vllm bf16", "vllm", "bf16", 10.0),
                      speed("coarse Q4_0", "coarse", "Q4_0", 20.0)),
        http=http, server_ready_s={run.server: 1.0 for run in http}, server_idle_cpu={run.server: 0.0 for run in http},
        failures=(), absent=(),
    )  # fmt: skip


def test_a_faster_engine_of_another_quality_is_no_yardstick(result: PeersResult) -> None:
    assert task_ratio(result, "t", "headrace") == (3.0, "vllm bf16")
    best = best_other(result, 16)
    assert best is not None
    assert best.server == "vllm serve"


def test_servers_are_compared_round_by_round(result: PeersResult) -> None:
    assert http_ratio(result, result.http[0]) == (2.5, "vllm serve")
    assert best_other(result, 64) is None


def test_the_page_shows_both_of_our_servers_their_quality_and_the_longer_tail(result: PeersResult) -> None:
    page = render_result(result)
    assert "headrace: 2.50 × vllm serve; headrace int8: 2.57 × vllm serve" in page
    assert "HTTP, 16 clients, p99 ITL: vllm serve 119 ms, headrace 150 ms" in page
    assert "headrace int8</td><td class=n>0.0080" in page
    assert "p99 TTFT: vllm" not in page
    assert page.count("1.5%</td>") == 4


def test_our_int8_server_stands_beside_the_one_that_keeps_the_file(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny", "llama", rope_scaling=None)
    ground = Ground(model=f"file:{source}", path=source, peers=tmp_path, scratch=tmp_path, threads=2)
    teams = line_up(ground)
    stored, int8 = teams.servers
    assert (stored.weights, stored.model, "--quantization" in stored.command) == ("as stored", "tiny", False)
    assert (int8.weights, int8.command[-2:]) == ("int8", ("--quantization", "int8"))
    assert int8.model == "tiny-hf-f32"
    assert {name for name, _ in teams.absent} == {"llama.cpp", "OpenVINO", "vLLM"}
