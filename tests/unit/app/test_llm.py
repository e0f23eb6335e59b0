"""`LLM` on a tiny random model: the blocking face says what the engine says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace import LLM, SamplingParams
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


def test_several_answers_to_a_prompt_are_its_outputs_and_the_first_is_that_of_one(llm: LLM) -> None:
    options = SamplingParams(seed=3, max_tokens=6, ignore_eos=True)
    (one,) = llm.generate("water", options)
    (several,) = llm.generate("water", options, n=3)
    assert [output.index for output in several.outputs] == [0, 1, 2]
    assert several.text == several.outputs[0].text == one.text
    assert len({output.token_ids for output in several.outputs}) == 3
    assert [len(output.token_ids) for output in several.outputs] == [6, 6, 6]
    assert (several.completion_tokens, several.prompt_tokens) == (18, one.prompt_tokens)
    assert len(several.prompt_token_ids) == several.prompt_tokens
    assert one.outputs[0].logprobs is None
    assert len(llm.chat(QUESTION, SamplingParams(n=2), max_tokens=2).outputs) == 2


def test_logprobs_come_by_position_with_as_many_alternatives_as_asked_for(llm: LLM) -> None:
    options = SamplingParams(max_tokens=5, seed=4, ignore_eos=True, temperature=1.0)
    (drawn,) = llm.generate("mill", options, logprobs=3, prompt_logprobs=0)
    (output,) = drawn.outputs
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids) == 5
    for token_id, position in zip(output.token_ids, output.logprobs, strict=True):
        assert next(iter(position)) == token_id
        assert 3 <= len(position) <= 4
        ranked = sorted((known.rank, known.logprob) for known in position.values() if known.rank is not None)
        assert [rank for rank, _ in ranked] == [1, 2, 3]
        assert [logprob for _, logprob in ranked] == sorted((logprob for _, logprob in ranked), reverse=True)
    total = sum(
        position[token_id].logprob for token_id, position in zip(output.token_ids, output.logprobs, strict=True)
    )
    assert output.cumulative_logprob == pytest.approx(total)
    assert drawn.prompt_logprobs is not None
    assert drawn.prompt_logprobs[0] is None
    assert [next(iter(known or ())) for known in drawn.prompt_logprobs[1:]] == list(drawn.prompt_token_ids[1:])
    (greedy,) = llm.generate("mill", temperature=0.0, max_tokens=4, logprobs=0, ignore_eos=True)
    assert [len(position) for position in greedy.outputs[0].logprobs or ()] == [1] * 4


def test_a_stop_says_by_what_and_the_best_of_several_are_given(llm: LLM) -> None:
    (free,) = llm.generate("river", temperature=0.0, max_tokens=8, ignore_eos=True)
    stop = free.outputs[0].token_ids[3]
    (stopped,) = llm.generate("river", temperature=0.0, max_tokens=8, ignore_eos=True, stop_token_ids=[stop])
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.outputs[0].stop_reason == stop
    options = SamplingParams(seed=5, max_tokens=6, ignore_eos=True, logprobs=0)
    (best,) = llm.generate("river", options, n=1, best_of=4)
    (every,) = llm.generate("river", options, n=4)
    likeliest = max(every.outputs, key=lambda output: output.cumulative_logprob or 0.0)
    assert best.outputs[0].token_ids == likeliest.token_ids
    (searched,) = llm.generate("river", use_beam_search=True, best_of=3, n=2, max_tokens=6)
    assert len(searched.outputs) == 2


def test_each_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    short, longer = llm.generate(
        ["a", "b"], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=5)], ignore_eos=True
    )
    assert (short.completion_tokens, longer.completion_tokens) == (2, 5)
    with pytest.raises(InvalidRequest, match="2 prompts and 1 sampling_params"):
        llm.generate(["a", "b"], [SamplingParams()])
    with pytest.raises(InvalidRequest, match="logprobs is 99; it must be between 0 and 20"):
        llm.generate("a", logprobs=99)
    with pytest.raises(InvalidRequest, match="n is 0"):
        llm.generate("a", n=0)
    with pytest.raises(InvalidRequest, match="n is 2; a stream is the text of one answer"):
        llm.stream("a", n=2)
    with pytest.raises(InvalidRequest, match="cannot be streamed"):
        next(llm.stream("a", best_of=2))


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
