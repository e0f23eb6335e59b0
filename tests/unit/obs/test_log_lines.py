from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys

from headrace.obs.log_lines import LineHandler, PlainRecord


class Stream(io.StringIO):
    """Counts its writes."""

    num_writes = 0

    def write(self, text: str) -> int:
        self.num_writes += 1
        return super().write(text)


def logger_to(stream: io.StringIO) -> tuple[logging.Logger, LineHandler]:
    logger, handler = logging.Logger("lines", logging.DEBUG), LineHandler(stream)
    logger.addHandler(handler)
    return logger, handler


def test_lines_of_one_moment_are_one_write_soon_after() -> None:
    stream = Stream()
    logger, _ = logger_to(stream)

    async def scene() -> None:
        for i in range(3):
            logger.info("line %d", i)
        assert stream.getvalue() == ""
        async with asyncio.timeout(60):
            while not stream.getvalue():
                await asyncio.sleep(0.005)

    asyncio.run(scene())
    assert (stream.num_writes, stream.getvalue()) == (1, "line 0\nline 1\nline 2\n")


def test_a_warning_takes_the_lines_before_it_along_at_once() -> None:
    stream = Stream()
    logger, _ = logger_to(stream)

    async def scene() -> None:
        logger.info("before")
        logger.warning("now")
        assert stream.getvalue() == "before\nnow\n"
        logger.debug("after")
        await asyncio.to_thread(logger.info, "of a thread")
        assert stream.getvalue().splitlines() == ["before", "now", "after", "of a thread"]

    asyncio.run(scene())
    logger.info("of no loop")
    assert stream.getvalue().endswith("of no loop\n")


def test_what_waits_is_bounded_and_no_other_loop_is_waited_for() -> None:
    stream = Stream()
    logger, handler = logger_to(stream)

    async def say(count: int) -> None:
        for i in range(count):
            logger.info("%d", i)

    asyncio.run(say(256))
    assert stream.getvalue().count("\n") == 256
    asyncio.run(say(1))  # its loop ends before it could write

    async def later() -> None:
        logger.info("later")
        async with asyncio.timeout(60):
            while "later" not in stream.getvalue():
                await asyncio.sleep(0.005)

    asyncio.run(later())
    assert stream.getvalue().endswith("\n0\nlater\n")
    handler.flush()
    assert stream.getvalue().endswith("\nlater\n")


def test_the_end_of_the_process_writes_what_waits() -> None:
    program = """
import asyncio, logging
from headrace.obs import configure_logging
configure_logging("info")
async def scene(): logging.getLogger("headrace.x").info("last words")
asyncio.run(scene())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("x  last words\n")


def test_a_plain_record_is_formatted_like_any_other() -> None:
    record = PlainRecord("headrace.a", logging.INFO, "100 % done", {"status": 200})
    text = logging.Formatter("%(levelname)s %(name)s %(filename)s:%(lineno)d %(message)s").format(record)
    assert text == "INFO headrace.a :0 100 % done"
    assert vars(record)["fields"] == {"status": 200}
