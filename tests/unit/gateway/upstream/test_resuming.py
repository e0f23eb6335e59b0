"""Answers that break off and go on elsewhere: the text is whole, nothing is said twice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.core.delta import Delta, FinishReason
from tests.unit.gateway.upstream.scripted import (
    DONE,
    QUICK,
    Deed,
    ScriptedServer,
    a_request,
    chunk,
    deltas_of,
    event,
    fleet_of,
    play,
    status,
    stream,
    text_of,
)

PROMPT = [1, 2, 3]


def told(text: str, ids: list[int], *, is_first: bool = False) -> bytes:
    """A chunk with its tokens, as a replica of ours tells them on request."""
    more = {"prompt_token_ids": PROMPT} if is_first else {}
    return event({"choices": [{"index": 0, "delta": {"content": text}, "token_ids": ids}], **more})


def rest(*texts: str, finish: str = "stop") -> Deed:
    pieces = [event({"choices": [{"index": 0, "text": text}]}) for text in texts]
    ending = event({"choices": [{"index": 0, "text": "", "finish_reason": finish}]})
    usage = event({"choices": [], "usage": {"prompt_tokens": 6, "completion_tokens": len(texts)}})
    return stream(*pieces, ending, usage, DONE)


def spelled(*texts: str) -> list[Deed]:
    return [status(200, {"prompt": text}) for text in texts]


BREAKING = stream(told("Hel", [10], is_first=True), told("lo ", [11, 12]), abort=True)


async def answered(first: Deed, *second: Deed, **given: Any) -> tuple[list[Delta], ScriptedServer, Any]:
    """Ask a pool whose first server breaks off and is always asked first."""
    async with ScriptedServer([first]) as one, ScriptedServer(list(second)) as two:
        first_always = msgspec.structs.replace(QUICK, choice="weighted")
        fleet = fleet_of(one.url, two.url, profile="headrace", policy=first_always, weights=(1e12, 1e-12))
        return await deltas_of(fleet, a_request(**given)), two, fleet.status()


def test_another_replica_goes_on_with_the_tokens_so_far() -> None:
    async def run() -> None:
        deltas, two, states = await answered(BREAKING, *spelled("<p>", "<p>Hello "), rest("wor", "ld"), max_tokens=9)
        assert text_of(deltas) == "Hello world"
        assert [delta.finish for delta in deltas if delta.finish] == [FinishReason.STOP]
        body = two.calls[2].body
        assert two.calls[2].path == "/v1/completions"
        assert (body["prompt"], body["max_tokens"]) == ([*PROMPT, 10, 11, 12], 6)
        usage = deltas[-1].usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (3, 5)
        assert [state.resumed for state in states] == [0, 1]

    play(run())


def test_text_that_was_held_back_is_said_first() -> None:
    async def run() -> None:
        broken = stream(told("Hel", [10, 11], is_first=True), abort=True)
        deltas, _, _ = await answered(broken, *spelled("<p>", "<p>Hello"), rest(" world"))
        assert text_of(deltas) == "Hello world"

    play(run())


def test_half_a_character_is_made_again() -> None:
    async def run() -> None:
        broken = stream(told("na", [10, 11], is_first=True), abort=True)
        deltas, two, _ = await answered(broken, *spelled("<p>", "<p>na\ufffd", "<p>na"), rest("ïve"))
        assert text_of(deltas) == "naïve"
        assert two.calls[3].body["prompt"] == [*PROMPT, 10]

    play(run())


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(("P!", "more"), "Hello"), (("Pond",), "Hello STOPond"), ((), "Hello STO")],
)
def test_a_stop_string_may_lie_across_the_seam(texts: tuple[str, ...], expected: str) -> None:
    async def run() -> None:
        broken = stream(told("Hello", [10, 11], is_first=True), abort=True)
        deltas, two, _ = await answered(broken, *spelled("<p>", "<p>Hello STO"), rest(*texts), stop=(" STOP!",))
        assert text_of(deltas) == expected
        assert [delta.finish for delta in deltas if delta.finish] == [FinishReason.STOP]
        assert (deltas[-1].stop_match == " STOP!") == (expected == "Hello")
        assert "stop" not in two.calls[2].body

    play(run())


def test_an_answer_that_had_all_its_tokens_ends_there() -> None:
    async def run() -> None:
        deltas, two, _ = await answered(BREAKING, *spelled("<p>", "<p>Hello "), max_tokens=3)
        assert text_of(deltas) == "Hello "
        assert deltas[-1].finish is FinishReason.LENGTH
        assert len(two.calls) == 2

    play(run())


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(stream(chunk("Hello "), abort=True), id="no tokens told"),
        pytest.param(stream(told("Hello ", [10]), abort=True), id="no prompt told"),
    ],
)
def test_without_tokens_the_answer_ends_as_an_error(first: Deed) -> None:
    async def run() -> None:
        deltas, two, _ = await answered(first, rest("never"))
        assert text_of(deltas) == "Hello "
        assert [delta.finish for delta in deltas if delta.finish] == [FinishReason.ERROR]
        assert not two.calls

    play(run())


@pytest.mark.parametrize(
    "second",
    [
        pytest.param([status(500)], id="it is ill too"),
        pytest.param(spelled("<p>", "<p>Hallo "), id="it spells otherwise"),
        pytest.param([*spelled("<p>", "<p>Hello "), stream(abort=True)], id="it breaks off too"),
    ],
)
def test_a_replica_that_cannot_go_on_leaves_one_error(second: list[Deed]) -> None:
    async def run() -> None:
        deltas, _, _ = await answered(BREAKING, *second)
        assert text_of(deltas) == "Hello "
        assert [delta.finish for delta in deltas if delta.finish] == [FinishReason.ERROR]
        assert deltas[-1].usage is not None

    play(run())


def test_other_kinds_of_servers_are_never_asked_to_go_on() -> None:
    async def run() -> None:
        async with ScriptedServer([BREAKING]) as one, ScriptedServer([BREAKING]) as two:
            fleet = fleet_of(one.url, two.url, profile="vllm")
            deltas = await deltas_of(fleet, a_request())
            assert deltas[-1].finish is FinishReason.ERROR
            assert len(one.calls) + len(two.calls) == 1
            assert "return_token_ids" not in (one.calls or two.calls)[0].body

    play(run())
