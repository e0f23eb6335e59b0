"""The comparison's arithmetic, its processes and what it writes, on peers made of a few lines of Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from headrace.bench.peers.compare import Measurement, best_ratio, run_rounds
from headrace.bench.peers.export import export_hf
from headrace.bench.peers.process import PeerError, PeerProcess, PeerSpec
from headrace.bench.report import Bar, Chart, render_page
from headrace.bench.token_prompts import TokenPrompts
from headrace.model import open_checkpoint
from headrace.testing.checkpoints import write_checkpoint
from headrace.text import load_tokenizer

PEER = """
import sys, time
sys.path.insert(0, RUNNERS)
import runner

class Sleeper:
    version, settings = "sleeper 1", "none"
    def __init__(self, config):
        self.step_s = config["step_s"]
    def generate(self, prompts, output_tokens):
        time.sleep(self.step_s * (len(prompts[0]) / 64 + output_tokens))
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
    assert 2 < ratio[0] < 6
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
