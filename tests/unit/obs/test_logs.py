"""One event, one line, for people or for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from headrace.obs import configure_logging


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
