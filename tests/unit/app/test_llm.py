"""`LLM` on a tiny random model: the blocking face says what the engine says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace import LLM
from headrace.core.delta import FinishReason
from headrace.core.errors import InvalidRequest, PromptTooLong
from headrace.core.settings import EngineSettings, Settings
from headrace.testing.checkpoints import write_checkpoint

QUESTION = [{"role": "user", "content": "q"}]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")
    engine = EngineSettings(backend="reference", kv_memory_mib=4, max_num_seqs=4, max_step_tokens=64)
    return Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(path.parent / "cache"))


@pytest.fixture(scope="module")
def llm(settings: Settings) -> Iterator[LLM]:
    with LLM(settings=settings) as loaded:
        yield loaded


def test_prompts_are_answered_together_and_in_order(llm: LLM) -> None:
    prompts = ["one", "two", [97, 98]]
    together = llm.generate(prompts, temperature=0.0, max_tokens=8, ignore_eos=True)
    alone = [llm.generate(prompt, temperature=0.0, max_tokens=8, ignore_eos=True)[0] for prompt in prompts]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert {answer.finish_reason for answer in together} == {FinishReason.LENGTH}
    assert [answer.prompt_tokens for answer in together] == [4, 4, 2]


def test_streams_say_the_same_as_whole_answers(llm: LLM) -> None:
    whole = llm.chat(QUESTION, temperature=0.0, max_tokens=16)
    assert "".join(llm.stream_chat(QUESTION, temperature=0.0, max_tokens=16)) == whole.text
    assert "".join(llm.stream("a", seed=5, max_tokens=9)) == llm.generate("a", seed=5, max_tokens=9)[0].text


def test_a_stream_may_be_left(llm: LLM) -> None:
    pieces = llm.stream("a", ignore_eos=True)
    next(pieces)
    pieces.close()
    assert llm.generate("a", max_tokens=1)[0].completion_tokens == 1


def test_bad_input_raises_and_the_next_call_works(llm: LLM) -> None:
    with pytest.raises(PromptTooLong):
        llm.generate("x" * 600)
    with pytest.raises(InvalidRequest, match="temperature"):
        llm.chat(QUESTION, temperature=-1.0)
    with pytest.raises(InvalidRequest, match="role 'boss'"):
        llm.chat([{"role": "boss", "content": "x"}])
    with pytest.raises(InvalidRequest, match="mix"):
        llm.generate(["a", 5])  # type: ignore[list-item]
    with pytest.raises(PromptTooLong):
        next(llm.stream("x" * 600))
    assert llm.chat(QUESTION, max_tokens=1).completion_tokens == 1


def test_a_window_that_one_prompt_asks_for_is_that_of_an_engine_that_has_it(llm: LLM, settings: Settings) -> None:
    text = "A headrace carries water from a stream to the wheel of a mill."
    plain = llm.generate(text, seed=1, max_tokens=40, ignore_eos=True)[0].text
    windowed = llm.generate(text, seed=1, max_tokens=40, ignore_eos=True, attention_window=12, attention_sinks=2)[
        0
    ].text
    assert windowed != plain
    engine = msgspec.structs.replace(settings.engine, attention_window=12, attention_sinks=2)
    with LLM(settings=msgspec.structs.replace(settings, engine=engine)) as narrow:
        assert narrow.generate(text, seed=1, max_tokens=40, ignore_eos=True)[0].text == windowed
        with pytest.raises(InvalidRequest, match=r"attention_window is 13; it must be from 1 to 12, engine"):
            narrow.generate(text, attention_window=13)
    assert llm.generate(text, seed=1, max_tokens=40, ignore_eos=True)[0].text == plain


def test_what_it_is_can_be_asked(llm: LLM) -> None:
    assert llm.name == "tiny"
    assert llm.has_chat_template
    assert llm.vocab_size == 260
    assert llm.plan.backend.value == "reference"


def test_closing_twice_is_fine(settings: Settings) -> None:
    small = msgspec.structs.replace(settings, engine=msgspec.structs.replace(settings.engine, max_step_tokens=8))
    loaded = LLM(settings=small)
    loaded.close()
    loaded.close()
