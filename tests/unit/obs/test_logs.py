"""One event, one line, for people or for machines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from headrace.gateway.admission import Authority
from headrace.gateway.admission.asks import Ask, terms_of
from headrace.gateway.admission.authority import aborted
from headrace.gateway.store import open_database
from headrace.obs import LogTag, configure_logging, tag_logs, untag_logs
from headrace.testing import VirtualClock


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("headrace").level)
    yield
    root.handlers[:], level, ours = before
    root.setLevel(level)
    logging.getLogger("headrace").setLevel(ours)


def test_text_lines_stay_one_line() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)
    logging.getLogger("headrace.api.access").info("a\nb %s", "c")
    logging.getLogger("headrace.api.access").debug("not this")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("INFO    api.access  a\\nb c")


def test_json_lines_are_objects_with_the_fields_of_the_event() -> None:
    stream = io.StringIO()
    configure_logging("info", stream, log_format="json")
    log = logging.getLogger("headrace.api.access")
    log.info("GET %s", "/x\n", extra={"fields": {"status": 200, "request_id": "r1"}})
    try:
        raise OSError("no\ndevice")
    except OSError:
        log.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "api.access", "GET /x\n")
    assert (first["status"], first["request_id"]) == (200, "r1")
    assert first["time"].endswith("Z")
    assert "OSError: no\ndevice" in second["traceback"]


def test_lines_of_a_request_and_of_the_tasks_it_begins_carry_its_ids() -> None:
    texts, objects = io.StringIO(), io.StringIO()
    log = logging.getLogger("headrace.gateway.upstream.member")

    async def attempt() -> None:
        log.warning("upstream 'u' broke off")

    async def request() -> None:
        token = tag_logs(LogTag("r1", "0af7"))
        await asyncio.create_task(attempt())
        log.info("client gone, request r1 aborted")
        untag_logs(token)
        log.info("after it")

    for stream, log_format in ((texts, "text"), (objects, "json")):
        configure_logging("info", stream, log_format=log_format)  # type: ignore[arg-type]
        asyncio.run(request())
        logging.getLogger().handlers[0].flush()
    first, second, third = texts.getvalue().splitlines()
    assert first.endswith("upstream 'u' broke off id=r1 trace=0af7")
    assert second.endswith("request r1 aborted trace=0af7")
    assert third.endswith("after it")
    tagged = [json.loads(line) for line in objects.getvalue().splitlines()]
    assert [(line.get("request_id"), line.get("trace_id")) for line in tagged] == [("r1", "0af7")] * 2 + [(None, None)]


def test_lines_of_what_works_for_all_requests_are_nobodys() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)

    async def scene() -> None:
        database = open_database("sqlite:///no/such/directory/accounts.db")
        authority = Authority(database, VirtualClock(), lease_s=30.0)
        tag_logs(LogTag("r1"))
        ask = Ask(
            id="a", request_id="r1", task="", terms=terms_of(("", "", "m"), (), ()), price=None, num_input=1,
            num_output=1, least_output=1,
        )  # fmt: skip
        grant = await authority.reserve(ask)
        authority.settle(grant, aborted(grant, 0))
        while not stream.getvalue():
            await asyncio.sleep(0)
        await database.close()  # the end of the loop cancels what tries again

    asyncio.run(scene())
    lines = stream.getvalue().splitlines()
    assert "settlements wait for the database" in lines[0]
    assert "id=r1" not in lines[0]


def test_an_exporter_that_complains_about_each_batch_is_heard_once_a_minute() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)
    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for seconds in (0.0, 5.0, 59.0, 60.0, 119.0):
        for level in (logging.WARNING, logging.ERROR):
            record = exporter.makeRecord(exporter.name, level, "f", 1, "no collector at %s", (seconds,), None)
            record.created = 1000.0 + seconds
            exporter.handle(record)
    logging.getLogger("headrace.app").error("ours")
    logging.getLogger("headrace.app").error("ours")
    said = [line.rpartition("  ")[2] for line in stream.getvalue().splitlines()]
    assert said == ["no collector at 0.0"] * 2 + ["no collector at 60.0"] * 2 + ["ours"] * 2
