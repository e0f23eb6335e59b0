"""The lane of quick statements: in force at once, on the disk a moment later, never used after a failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.gateway.store import postgres_lane
from headrace.gateway.store.postgres_lane import Lane
from tests.patient_loop import run_patiently


class Connection:
    """Answers every statement, or fails, or never ends."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.is_over = False

    async def execute(self, sql: str) -> None:
        self.said.append(sql)

    async def fetch(self, sql: str, *args: Any) -> list[dict[str, int]]:
        self.said.append(sql)
        if sql == "fail":
            raise OSError("gone")
        if sql == "hang":
            await asyncio.Event().wait()
        return [{"one": 1}]

    def is_closed(self) -> bool:
        return self.is_over

    def terminate(self) -> None:
        self.is_over = True


class Bench:
    """A lane, the connections it made, and how often it flushed."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.flushed = asyncio.Event()
        self.num_flushes = 0

        async def connect() -> Any:
            self.made.append(Connection())
            return self.made[-1]

        async def flush() -> None:
            self.num_flushes += 1
            self.flushed.set()

        self.lane = Lane(connect, flush)


def test_many_statements_share_one_connection_and_one_flush() -> None:
    async def main() -> None:
        bench = Bench()
        for _ in range(5):
            assert await bench.lane.fetch("x", ()) == [{"one": 1}]
        await bench.flushed.wait()
        await bench.lane.close()
        assert (len(bench.made), bench.num_flushes) == (1, 1)
        assert "synchronous_commit = off" in bench.made[0].said[0]

    run_patiently(main())


def test_closing_flushes_what_was_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_lane, "FLUSH_S", 3600.0)

    async def main() -> None:
        bench = Bench()
        await bench.lane.fetch("x", ())
        await bench.lane.close()
        assert bench.num_flushes == 1
        await bench.lane.close()
        assert bench.num_flushes == 1

    asyncio.run(main())


def test_a_connection_that_failed_or_was_left_is_not_used_again() -> None:
    async def main() -> None:
        bench = Bench()
        with pytest.raises(OSError, match="gone"):
            await bench.lane.fetch("fail", ())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bench.lane.fetch("hang", ()), 0.01)
        await bench.lane.fetch("x", ())
        await bench.lane.close()
        assert [connection.is_over for connection in bench.made] == [True, True, True]

    asyncio.run(main())
