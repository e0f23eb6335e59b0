"""The chain: what is added fits, what is changed behind its back is found, and who may add."""

from __future__ import annotations

import asyncio

import pytest

from headrace.core.audit import AuditEvent
from headrace.core.errors import ConfigError
from headrace.gateway.audit.chain import Chain, Entry
from headrace.gateway.audit.keys import AuditKey, KeyRing
from headrace.gateway.audit.verify import Anchor
from tests.audit_scene import Log, new_key, play


@pytest.fixture(params=["plain", "keyed"])
def key(request: pytest.FixtureRequest) -> AuditKey | None:
    return new_key() if request.param == "keyed" else None


def test_rows_are_numbered_from_one_and_whole(url: str, key: AuditKey | None) -> None:
    async def scene(log: Log) -> None:
        assert (await log.verdict()).rows == 0
        await log.fill(3)
        await log.fill(1200)
        found = await log.verdict()
        assert found.problem is None
        assert (found.rows, found.head.seq, found.keyed_from) == (1203, 1203, 1 if key else None)

    play(url, scene, key)


def test_gateways_take_turns_at_the_end_of_one_chain(url: str, key: AuditKey | None) -> None:
    async def scene(log: Log) -> None:
        chains = [Chain(log.database.dialect, log.keys) for _ in range(4)]

        async def write(chain: Chain, number: int) -> None:
            for i in range(5):
                entry = Entry(f"{number}/{i}", AuditEvent(at_ns=i))
                chain.confirm(await log.database.run(lambda tx, entry=entry: chain.append(tx, [entry])))

        await asyncio.gather(*(write(chain, number) for number, chain in enumerate(chains)))
        assert (await log.verdict()).rows == 20

    play(url, scene, key)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit_rows SET body = REPLACE(body, 't1', 't2'), tenant = 't2' WHERE seq = 5", "row 5 was changed"),
        ("UPDATE audit_rows SET tenant = 'other' WHERE seq = 5", "row 5: its columns"),
        ("UPDATE audit_rows SET content = 'x' WHERE seq = 5", "row 5: its content"),
        ("DELETE FROM audit_rows WHERE seq = 5", "row 5 is missing"),
        ("DELETE FROM audit_rows WHERE seq IN (4, 5, 6)", "rows 4 to 6 are missing"),
        ("DELETE FROM audit_rows WHERE seq = 9", "row 9 at the end is missing"),
        ("DELETE FROM audit_rows WHERE seq > 7", "rows 8 to 9 at the end are missing"),
        ("UPDATE audit_rows SET body = '{' WHERE seq = 2", "row 2 cannot be read"),
        ("UPDATE audit_head SET seq = 8, digest = (SELECT digest FROM audit_rows WHERE seq = 8)", "the head's seal"),
        ("DELETE FROM audit_head", "the head's seal"),
        ("INSERT INTO audit_gaps VALUES (3, 3, '', '')", "retention is said to have deleted"),
        ("INSERT INTO audit_holds VALUES ('h', 't1', '', '', 0)", "gaps or holds were changed"),
    ],
)
def test_what_was_done_to_a_row_is_found_and_named(
    url: str, key: AuditKey | None, statement: str, problem: str
) -> None:
    async def scene(log: Log) -> None:
        await log.fill(9)
        await log.do(statement)
        assert str((await log.verdict()).problem).startswith(problem)

    play(url, scene, key)


def test_a_log_that_was_cut_back_while_its_gateway_runs_gets_an_alarm(url: str, key: AuditKey | None) -> None:
    """Head and rows fit each other afterwards: only who wrote them remembers."""

    async def scene(log: Log) -> None:
        await log.fill(4)
        before = await log.rows("SELECT seq, digest, key_name, seal FROM audit_head")
        await log.fill(3)
        old = before[0]
        await log.do(
            "DELETE FROM audit_rows WHERE seq > 4",
            f"UPDATE audit_head SET seq = 4, digest = '{old['digest']}', key_name = '{old['key_name']}', "
            f"seal = '{old['seal']}'",
        )
        assert (await log.verdict()).problem is None
        await log.fill(1)
        found = await log.verdict()
        assert (found.seq, found.problem is not None and "alarm" in found.problem) == (5, True)

    play(url, scene, key)


def test_a_log_goes_on_behind_rows_that_somebody_put_at_its_end(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(2)
        await log.do(
            "INSERT INTO audit_rows SELECT seq + 1, 'x', at_ns, kind, tenant, key_id, request_id, model, decision, "
            "reason, body, content, digest FROM audit_rows WHERE seq = 2"
        )
        await log.fill(1)
        assert [row["kind"] for row in await log.rows("SELECT kind FROM audit_rows WHERE seq > 3 ORDER BY seq")] == [
            "alarm",
            "call",
        ]
        assert (await log.verdict()).seq == 3

    play(url, scene)


def test_an_anchor_finds_a_log_that_was_put_back_as_a_whole(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(3)
        head = (await log.verdict()).head
        anchor = Anchor(head.seq, head.digest)
        assert (await log.verdict([anchor])).problem is None
        await log.fill(3)
        assert (await log.verdict([anchor])).problem is None
        await log.do("DELETE FROM audit_rows", "UPDATE audit_head SET seq = 0, digest = '', key_name = '', seal = ''")
        assert (await log.verdict()).problem is None
        other = Log(log.database, None)
        assert "cut off" in str((await other.verdict([anchor])).problem)
        await other.fill(5)
        assert "anchor" in str((await other.verdict([anchor])).problem)

    play(url, scene)


def test_a_sealed_log_cannot_be_made_anew_without_its_key(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(3)
        await log.do("DELETE FROM audit_rows", "UPDATE audit_head SET seq = 0, digest = '', key_name = '', seal = ''")
        forger = Log(log.database, None)
        await forger.fill(3)
        await log.do("UPDATE audit_rows SET kind = kind")
        assert (await log.verdict()).keyed_from is None  # it says so; an anchor would find it
        forger = Log(log.database, new_key())
        await forger.fill(1)
        assert "was not given" in str((await log.verdict()).problem)

    play(url, scene, new_key())


def test_only_who_has_the_key_adds_to_a_sealed_log(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(1)
        with pytest.raises(ConfigError, match=r"name the place|which is not here"):
            await Log(log.database, None).fill(1)
        with pytest.raises(ConfigError, match="which is not here"):
            await Log(log.database, new_key()).fill(1)
        renewed = Log(log.database, None)
        key = new_key()
        renewed.keys = KeyRing(key, [log.keys.current])
        renewed.chain = Chain(log.database.dialect, renewed.keys)
        await renewed.fill(1)
        assert (await renewed.verdict()).problem is None
        assert (await log.verdict()).seq == 2

    play(url, scene, new_key())


def test_a_row_that_is_not_sealed_does_not_follow_one_that_is(url: str) -> None:
    async def scene(log: Log) -> None:
        await log.fill(2)
        await log.do("UPDATE audit_head SET key_name = '', seal = ''")
        await Log(log.database, None).fill(1)
        assert "not sealed" in str((await log.verdict()).problem)

    play(url, scene, new_key())
