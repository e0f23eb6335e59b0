"""The writer: nobody waits for it, nothing is lost in silence, and its bounds hold while the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headrace.core.audit import AuditContent, AuditEvent
from headrace.core.audit_settings import AuditSettings
from headrace.core.errors import StoreUnavailable
from headrace.gateway.audit import writer as module
from headrace.gateway.audit.content import ContentSafe, open_content
from headrace.gateway.audit.reading import Filter, read_rows
from headrace.gateway.audit.writer import AuditWriter
from headrace.testing import VirtualClock
from tests.audit_scene import Log, new_key, play


class Away:
    """A database that can go away, before a transaction or just after it was committed."""

    def __init__(self, log: Log) -> None:
        self.dialect = log.database.dialect
        self.failures: list[str] = []
        self._inner = log.database

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        kind = self.failures.pop(0) if self.failures else ""
        if kind == "before":
            raise StoreUnavailable("gone")
        done = await self._inner.run(work)
        if kind == "after":
            raise StoreUnavailable("gone, but it was committed")
        return done


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    monkeypatch.setattr(module, "GATHER_S", 0.0)


def make(log: Log, database: Any = None, **settings: Any) -> AuditWriter:
    options = AuditSettings(**settings)
    clock: Any = VirtualClock()
    return AuditWriter(database or log.database, log.chain, ContentSafe(options.content, log.keys), options, clock)


def event(n: int = 0, **fields: Any) -> AuditEvent:
    return AuditEvent(at_ns=n, request_id=f"r{n}", **fields)


def test_what_is_recorded_is_written_in_order_in_few_transactions(url: str) -> None:
    async def scene(log: Log) -> None:
        writer = make(log)
        for n in range(1200):
            writer.record(event(n))
        await writer.close()
        rows = await read_rows(log.database, Filter())
        assert [found.row.request_id for found in rows] == [f"r{n}" for n in range(1000)]
        assert (writer.stats().written, writer.stats().waiting) == (1200, 0)
        assert (await log.verdict()).rows == 1200

    play(url, scene, new_key())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_database_that_goes_away_costs_no_row_and_doubles_none(url: str, moment: str) -> None:
    async def scene(log: Log) -> None:
        database = Away(log)
        writer = make(log, database)
        database.failures = [moment] * 3
        for n in range(5):
            writer.record(event(n))
        await writer.flush()
        rows = await read_rows(log.database, Filter())
        assert [found.row.request_id for found in rows] == [f"r{n}" for n in range(5)]
        assert writer.stats().failures == 3
        assert (await log.verdict()).problem is None

    play(url, scene)


def test_beyond_its_bound_events_are_given_up_and_the_log_says_how_many(url: str) -> None:
    async def scene(log: Log) -> None:
        database = Away(log)
        writer = make(log, database, max_buffered=10)
        for n in range(25):
            writer.record(event(n))
            writer.check()
        await writer.flush()
        (lost,) = await read_rows(log.database, Filter(kind="lost"))
        assert lost.row.detail == {"rows": 15, "why": "database"}
        assert writer.stats().lost == 15
        writer.record(event(99))
        await writer.flush()
        assert len(await read_rows(log.database, Filter(kind="lost"))) == 1

    play(url, scene)


def test_calls_that_must_be_recorded_are_refused_until_there_is_room(url: str) -> None:
    async def scene(log: Log) -> None:
        writer = make(log, max_buffered=3, on_failure="refuse")
        for n in range(3):
            writer.check()
            writer.record(event(n))
        with pytest.raises(StoreUnavailable, match=r"audit\.on_failure"):
            writer.check()
        writer.record(event(3))  # a call that was under way
        await writer.flush()
        writer.check()
        assert len(await read_rows(log.database, Filter())) == 4
        assert writer.stats().refused == 1

    play(url, scene)


def test_callers_without_a_key_cannot_fill_the_log(url: str) -> None:
    async def scene(log: Log) -> None:
        writer = make(log)
        for n in range(500):
            writer.record(event(n, reason="auth", decision="refused"))
        await writer.flush()
        assert len(await read_rows(log.database, Filter(reason="auth"))) == module.DOOR_BURST
        (lost,) = await read_rows(log.database, Filter(kind="lost"))
        assert lost.row.detail == {"rows": 300, "why": "flood"}

    play(url, scene)


def test_content_is_kept_closed_and_counts_towards_the_bound(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(log: Log) -> None:
        writer = make(log, content="redacted")
        said = AuditContent(request='{"prompt":"ada@example.org"}', answer="hello")
        writer.record(event(1), said)
        await writer.flush()
        ((found),) = await read_rows(log.database, Filter())
        assert found.content is not None
        assert open_content(found.content, log.keys).request == '{"prompt":"[email]"}'
        assert (await log.verdict()).problem is None
        monkeypatch.setattr(module, "MAX_BYTES", 10_000)
        for n in range(5):
            writer.record(event(n), AuditContent(request="x" * 2_000, answer=""))
        assert writer.stats().lost == 3
        await writer.flush()

    play(url, scene, new_key())


def test_a_failure_of_ours_is_told_and_later_events_are_written(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(log: Log) -> None:
        database = Away(log)
        writer = make(log, database)
        broken = database.run

        async def once(work: Any) -> Any:
            database.run = broken  # type: ignore[method-assign]
            raise ValueError("a bug")

        database.run = once  # type: ignore[method-assign]
        writer.record(event(1))
        await writer.flush()
        assert len(await read_rows(log.database, Filter())) == 1

    play(url, scene)
    assert "a batch of the audit log failed" in caplog.text


def test_what_cannot_be_written_at_the_end_is_told(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.01)

    async def scene(log: Log) -> None:
        database = Away(log)
        database.failures = ["before"] * 10_000
        writer = make(log, database)
        writer.record(event(1))
        await asyncio.sleep(0)
        await writer.close()

    play(url, scene)
    assert "1 rows of the audit log could not be written" in caplog.text


@pytest.mark.parametrize(
    ("record", "method", "path", "decision", "wanted"),
    [
        ("all", "POST", "/v1/chat/completions", "allowed", True),
        ("all", "GET", "/metrics", "allowed", False),
        ("all", "GET", "/metrics", "refused", True),
        ("all", "GET", "/admin/v1/audit", "allowed", True),
        ("changes", "POST", "/v1/chat/completions", "refused", False),
        ("changes", "POST", "/admin/v1/tenants", "allowed", True),
        ("changes", "GET", "/admin/v1/tenants", "allowed", False),
        ("changes", "GET", "/admin/v1/tenants", "refused", True),
    ],
)
def test_which_calls_leave_a_row(url: str, record: Any, method: str, path: str, decision: Any, wanted: bool) -> None:
    async def scene(log: Log) -> None:
        assert make(log, record=record).wants(method, path, decision) is wanted

    play(url, scene)
