"""A refusal for want of room comes before the prompt is read."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import Overloaded
from headrace.core.request import Knock

CHAT = {"messages": [{"role": "user", "content": "refuse"}]}  # the template would refuse it, if it were asked


class Doorman:
    """Refuses everybody and remembers who came."""

    def __init__(self) -> None:
        self.knocks: list[Knock] = []

    def __call__(self, knock: Knock) -> None:
        self.knocks.append(knock)
        raise Overloaded("9 sequences are waiting, the limit is 9", retry_after_s=3.0)


@pytest.mark.parametrize(
    ("path", "body", "prefix"),
    [
        ("/v1/chat/completions", CHAT, "chatcmpl-"),
        ("/v1/completions", {"prompt": "x"}, "cmpl-"),
        ("/v1/messages", {**CHAT, "max_tokens": 4}, "msg_"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_who_finds_no_room_is_refused_unread(make_api: Any, path: str, body: Any, prefix: str, stream: bool) -> None:
    doorman = Doorman()
    api = make_api(check_room=doorman)
    response = api.call("POST", path, json={**body, "model": "echo", "stream": stream}, headers={"x-request-id": "r1"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert "the limit is 9" in response.text
    assert api.upstream.requests == []
    assert doorman.knocks[0].request_id.startswith(f"{prefix}r1")


def test_what_decides_about_room_is_told_and_its_ranges_come_first(make_api: Any) -> None:
    doorman = Doorman()
    api = make_api(check_room=doorman)
    assert api.chat(priority=-3, service_tier="flex", deadline_ms=250).status_code == 429
    (knock,) = doorman.knocks
    assert (knock.priority, knock.is_background, knock.deadline_s, knock.model) == (-3, True, 0.25, "echo")
    refused = api.chat(priority=101)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
    assert len(doorman.knocks) == 1


def test_who_finds_room_is_served(make_api: Any) -> None:
    assert make_api(check_room=lambda knock: None).chat("hi").status_code == 200
