"""The conversation loop, with a talker that answers with what it was told."""

from __future__ import annotations

import io
from collections.abc import Generator
from typing import Any

import pytest

from headrace.cli.chat import converse
from headrace.core.errors import RequestFailed


class Parrot:
    """Answers in two pieces; `interrupt` and `fail` do what they say."""

    def __init__(self) -> None:
        self.heard: list[list[dict[str, str]]] = []
        self.num_closed = 0

    def answer(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        self.heard.append([dict(message) for message in messages])
        question = messages[-1]["content"]
        try:
            yield "you said "
            if question == "interrupt":
                raise KeyboardInterrupt
            if question == "fail":
                raise RequestFailed("the engine could not")
            yield question
        finally:
            self.num_closed += 1


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(text: str, system: str | None = None) -> tuple[Parrot, str]:
        parrot = Parrot()
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        converse(parrot, system, "parrot")
        return parrot, capsys.readouterr().out

    return run


def test_a_pipe_gets_answers_and_nothing_else(talk: Any) -> None:
    parrot, out = talk("one\n\ntwo\n")
    assert out == "you said one\nyou said two\n"
    assert [message["role"] for message in parrot.heard[1]] == ["user", "assistant", "user"]


def test_clear_forgets_but_keeps_the_system_message(talk: Any) -> None:
    parrot, _ = talk("one\n/clear\ntwo\n", system="be brief")
    assert parrot.heard[1] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two"}]


def test_exit_ends_before_the_input_does(talk: Any) -> None:
    parrot, _ = talk("one\n/exit\ntwo\n")
    assert len(parrot.heard) == 1


def test_an_interrupt_stops_the_answer_and_not_the_conversation(talk: Any) -> None:
    parrot, out = talk("interrupt\nnext\n")
    assert out == "you said  …\nyou said next\n"
    assert parrot.heard[1][1] == {"role": "assistant", "content": "you said "}
    assert parrot.num_closed == 2


def test_a_failed_answer_is_left_out_of_the_conversation(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parrot, out = talk("fail\nnext\n")
    assert out.endswith("you said next\n")
    assert parrot.heard[1] == [{"role": "user", "content": "next"}]
