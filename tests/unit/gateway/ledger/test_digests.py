"""What is kept of a request says what it equals, and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.core.conversation import Given
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.econ.stack.rows import PREFIX_DIGITS
from headrace.gateway.ledger.digests import Digests

DIGESTS = Digests("key")


def request(*prompt: int, **fields: Any) -> Request:
    values: dict[str, Any] = {"sampling": SamplingParams(temperature=0.0), "stop": StopRules(max_tokens=9), **fields}
    return Request(request_id=RequestId("r"), model="m", prompt=prompt, **values)


def test_prompts_that_begin_alike_share_the_digests_of_their_beginning() -> None:
    common = tuple(range(130))
    one = DIGESTS.trace(request(*common, *range(200)), 9).prefix_digests or ""
    other = DIGESTS.trace(request(*common, 7, *range(200)), 9).prefix_digests or ""
    assert len(one) == len(other) == 3 * PREFIX_DIGITS
    assert one[: 2 * PREFIX_DIGITS] == other[: 2 * PREFIX_DIGITS]
    assert one[2 * PREFIX_DIGITS :] != other[2 * PREFIX_DIGITS :]
    assert DIGESTS.trace(request(*common[:63]), 9).prefix_digests == ""


def test_what_decides_the_answer_is_in_the_digest_and_the_rest_is_not() -> None:
    base = request(1, 2)
    told = DIGESTS.trace(base, 9)
    assert told.is_repeatable
    same = [
        msgspec.structs.replace(base, wants_stream=True, tenant="t", arrival_s=3.0),
        msgspec.structs.replace(base, sampling=SamplingParams(temperature=0.0, seed=77)),
    ]
    assert {DIGESTS.trace(each, 9).request_digest for each in same} == {told.request_digest}
    others = [
        msgspec.structs.replace(base, stop=StopRules(max_tokens=8)),
        msgspec.structs.replace(base, model="n"),
        msgspec.structs.replace(base, prompt=(2, 1)),
        msgspec.structs.replace(base, sampling=SamplingParams(temperature=0.5, seed=77)),
    ]
    assert told.request_digest not in {DIGESTS.trace(each, 9).request_digest for each in others}
    assert Digests("another").trace(base, 9).request_digest != told.request_digest


def test_a_remote_request_is_told_by_its_words() -> None:
    asked = request(source="water", given=Given(temperature=0.0, wants_stream=True))
    told = DIGESTS.trace(asked, 9)
    assert (told.is_stream, told.is_repeatable, told.prefix_digests) == (True, True, "")
    silent = msgspec.structs.replace(asked, given=Given(temperature=0.0, labels=(("user", msgspec.Raw(b'"u"')),)))
    assert DIGESTS.trace(silent, 9).request_digest == told.request_digest
    other = msgspec.structs.replace(asked, source="fire")
    assert DIGESTS.trace(other, 9).request_digest != told.request_digest


def test_tokens_that_no_model_has_leave_no_digest_and_no_trouble() -> None:
    told = DIGESTS.trace(request(1, 2**64), 9)
    assert (told.request_digest, told.most_output) == (None, 9)
