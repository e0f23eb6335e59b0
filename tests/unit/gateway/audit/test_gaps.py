"""Retention and holds: what goes, what stays, and that the chain leads over what is gone."""

from __future__ import annotations

import pytest

from headrace.core.errors import InvalidRequest, NotFound
from headrace.gateway.audit.gaps import Gap, hold, merge, prune, read_gaps, read_holds, release
from headrace.gateway.audit.upkeep import Upkeep
from headrace.gateway.audit.verify import Anchor
from tests.audit_scene import DAY_NS, Log, new_key, play


async def thin_out(log: Log, before_days: int) -> int:
    return await log.database.run(lambda tx: prune(tx, log.chain, before_days * DAY_NS))


def test_what_is_past_its_time_goes_and_the_log_stays_whole(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(10)
        assert await thin_out(log, 4) == 4
        found = await log.verdict()
        assert (found.problem, found.deleted, found.rows) == (None, 4, 7)
        assert await thin_out(log, 4) == 0
        assert await thin_out(log, 8) == 4
        async with log.database.transaction(writes=False) as tx:
            (gap,) = await read_gaps(tx)
        assert (gap.from_seq, gap.until_seq) == (1, 8)
        assert (await log.verdict()).problem is None

    play(url, scene, new_key())


def test_a_hold_keeps_a_tenants_rows_until_it_is_released(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(9)
        placed = await log.database.run(lambda tx: hold(tx, log.chain, tenant="t1", note="case 7", actor="cli/a"))
        assert await thin_out(log, 9) == 6
        left = await log.rows("SELECT tenant FROM audit_rows WHERE kind = 'call'")
        assert {row["tenant"] for row in left} == {"t1"}
        assert len(left) == 3
        assert (await log.verdict()).problem is None
        await log.database.run(lambda tx: release(tx, log.chain, placed.id))
        assert await thin_out(log, 9) == 3
        found = await log.verdict()
        assert (found.problem, found.deleted) == (None, 9)
        async with log.database.transaction(writes=False) as tx:
            assert len(await read_gaps(tx)) == 1
            assert await read_holds(tx) == []

    play(url, scene)


def test_a_hold_keeps_one_request(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(3, request_id="a")
        await log.fill(3, request_id="b")
        await log.database.run(lambda tx: hold(tx, log.chain, request_id="a"))
        assert await thin_out(log, 9) == 3
        kept = await log.rows("SELECT DISTINCT request_id FROM audit_rows WHERE kind = 'call'")
        assert kept == [{"request_id": "a"}]

    play(url, scene)


def test_a_hold_taken_away_behind_the_logs_back_is_found(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(3)
        await log.database.run(lambda tx: hold(tx, log.chain, tenant="t1"))
        await log.do("DELETE FROM audit_holds")
        assert "gaps or holds" in str((await log.verdict()).problem)

    play(url, scene)


def test_rows_deleted_under_a_widened_gap_are_found(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(9)
        await thin_out(log, 3)
        await log.do(
            "UPDATE audit_gaps SET until_seq = 4, digest = (SELECT digest FROM audit_rows WHERE seq = 4)",
            "DELETE FROM audit_rows WHERE seq = 4",
        )
        assert "gaps or holds" in str((await log.verdict()).problem)

    play(url, scene)


def test_an_anchor_of_a_deleted_row_holds_by_what_lies_behind(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(2)
        inside = Anchor(*(await log.verdict()).head[:2])
        await log.fill(4)
        await thin_out(log, 3)
        assert (await log.verdict([inside])).problem is None

    play(url, scene)


def test_upkeep_deletes_in_batches_what_is_older_than_the_retention(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(2500)
        upkeep = Upkeep(log.database, log.chain, 100, wall_ns=lambda: 2500 * DAY_NS)
        assert await upkeep.prune() == 2400
        assert (await log.verdict()).problem is None
        assert await Upkeep(log.database, log.chain, 0).prune() == 0

    play(url, scene)


def test_holds_are_for_one_thing_and_released_once(url: str) -> None:
    async def scene(log: Log) -> None:
        for wrong in ({}, {"tenant": "a", "request_id": "b"}, {"tenant": "a" * 300}, {"tenant": "a\n"}):
            with pytest.raises(InvalidRequest):
                await log.database.run(lambda tx, wrong=wrong: hold(tx, log.chain, **wrong))
        with pytest.raises(NotFound):
            await log.database.run(lambda tx: release(tx, log.chain, "hold-x"))
        assert (await log.verdict()).rows == 0

    play(url, scene)


def test_gaps_that_touch_become_one() -> None:
    gaps = [Gap(5, 6, "c", "d"), Gap(1, 2, "a", "b"), Gap(3, 4, "b", "c"), Gap(9, 9, "e", "f")]
    assert merge(gaps) == [Gap(1, 6, "a", "d"), Gap(9, 9, "e", "f")]
