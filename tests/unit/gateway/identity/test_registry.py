"""Tenants and keys: made, found, rotated, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headrace.core.errors import Conflict, Forbidden, InvalidRequest, NotFound, StoreUnavailable, Unauthorized
from headrace.gateway.identity import Directory, Pepper, Registry, Role
from headrace.gateway.identity.gate import Gate
from headrace.gateway.identity.secrets import Presented, parse, spell
from headrace.gateway.store import Database, migrate, open_database
from headrace.gateway.store.watch import Watch
from headrace.testing import VirtualClock


class World:
    """A database, its administration and one gateway's memory of it, on two clocks."""

    def __init__(self, database: Database) -> None:
        self.wall_s = 1_800_000_000.0
        self.clock = VirtualClock()
        self.database = database
        self.registry = Registry(database, lambda: self.wall_s)
        self.directory = Directory(lambda: self.wall_s)
        self.watch = Watch(database, self.clock, [self.directory])
        self.gate = Gate(self.directory, self.watch)

    async def caller(self, text: str, path: str = "/v1/models") -> Any:
        self.clock.advance(10.0)
        return await self.gate.identify(path, {"authorization": f"Bearer {text}"})

    async def problem(self, text: str, path: str = "/v1/models") -> str:
        with pytest.raises((Unauthorized, Forbidden)) as caught:
            await self.caller(text, path)
        assert text == "" or text not in caught.value.message
        return caught.value.message


@pytest.fixture
def play(url: str) -> Callable[[Any], None]:
    """Run a scene against a world."""

    def run(scene: Any) -> None:
        async def whole() -> None:
            database = open_database(url)
            await database.open()
            try:
                await migrate(database)
                await scene(World(database))
            finally:
                await database.close()

        asyncio.run(whole())

    return run


def test_a_key_finds_its_tenant(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme", "Acme Ltd")
        issued = await world.registry.create_key("acme", name="ci", models=["b", "a", "b"])
        caller = await world.caller(issued.text)
        assert (caller.tenant, caller.key_id, caller.models) == ("acme", issued.key.id, {"a", "b"})

    play(scene)


def test_a_wrong_secret_and_an_unknown_key_are_refused_alike(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme")
        issued = await world.registry.create_key("acme")
        wrong = spell(issued.key.id, "a" * 52)
        messages = {await world.problem(text) for text in ("", "sk-123", wrong, spell("a" * 12, "b" * 52))}
        assert len(messages) == 1

    play(scene)


def test_expired_revoked_and_disabled_keys_are_refused_by_name(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme")
        soon = await world.registry.create_key("acme", expires_s=int(world.wall_s) + 60)
        gone = await world.registry.create_key("acme")
        await world.registry.revoke_key(gone.key.id)
        assert "revoked" in await world.problem(gone.text)
        assert (await world.caller(soon.text)).tenant == "acme"
        world.wall_s += 60
        assert "expired" in await world.problem(soon.text)
        live = await world.registry.create_key("acme")
        await world.registry.change_tenant("acme", is_disabled=True)
        assert "disabled" in await world.problem(live.text)
        await world.registry.change_tenant("acme", is_disabled=False)
        assert (await world.caller(live.text)).tenant == "acme"

    play(scene)


def test_a_rotated_secret_works_for_its_grace(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme")
        first = await world.registry.create_key("acme")
        second = await world.registry.rotate_key(first.key.id, grace_s=3600)
        assert first.text != second.text
        assert {(await world.caller(issued.text)).key_id for issued in (first, second)} == {first.key.id}
        world.wall_s += 3600
        await world.problem(first.text)
        third = await world.registry.rotate_key(first.key.id)
        await world.problem(second.text)
        assert (await world.caller(third.text)).key_id == first.key.id
        await world.registry.revoke_key(first.key.id)
        with pytest.raises(Conflict, match="revoked"):
            await world.registry.rotate_key(first.key.id)

    play(scene)


def test_without_keys_everyone_is_anonymous_until_the_first_is_made(play: Any) -> None:
    async def scene(world: World) -> None:
        assert (await world.caller("")).tenant == ""
        await world.problem("", "/admin/v1/tenants")
        await world.registry.create_tenant("acme")
        issued = await world.registry.create_key("acme")
        await world.problem("")
        await world.registry.revoke_key(issued.key.id)
        await world.problem("")  # ended keys do not open the door again

    play(scene)


def test_roles_open_their_own_doors(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("ops")
        texts = {role: (await world.registry.create_key("ops", role=role)).text for role in Role}
        doors = {"/v1/chat/completions": {"user", "admin"}, "/metrics": {"monitor", "admin"}, "/admin/v1/x": {"admin"}}
        for path, allowed in doors.items():
            for role, text in texts.items():
                if role.value in allowed:
                    assert (await world.caller(text, path)).tenant == "ops"
                else:
                    assert "role" in await world.problem(text, path)

    play(scene)


def test_a_change_is_noticed_within_a_second_of_traffic(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme")
        issued = await world.registry.create_key("acme")
        headers = {"authorization": f"Bearer {issued.text}"}
        await world.caller(issued.text)
        await world.registry.revoke_key(issued.key.id)
        await world.gate.identify("/v1/models", headers)  # remembered
        world.clock.advance(1.0)
        await world.gate.identify("/v1/models", headers)  # starts to look, does not wait
        await world.watch.close()
        with pytest.raises(Unauthorized):
            await world.gate.identify("/v1/models", headers)

    play(scene)


def test_known_keys_work_for_a_while_without_the_database(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme")
        issued = await world.registry.create_key("acme")
        await world.caller(issued.text)
        await world.database.close()
        assert (await world.caller(issued.text)).tenant == "acme"
        world.clock.advance(300.0)
        with pytest.raises(StoreUnavailable):
            await world.caller(issued.text)

    play(scene)


def test_commands_refuse_what_does_not_fit(play: Any) -> None:
    async def scene(world: World) -> None:
        registry = world.registry
        await registry.create_tenant("acme")
        for bad_id in ("", "Acme", "a b", "-a", "a" * 65):
            with pytest.raises(InvalidRequest, match="tenant id"):
                await registry.create_tenant(bad_id)
        with pytest.raises(Conflict, match="exists"):
            await registry.create_tenant("acme")
        with pytest.raises(NotFound, match="other"):
            await registry.create_key("other")
        with pytest.raises(NotFound, match="no key"):
            await registry.revoke_key("nokey")
        with pytest.raises(InvalidRequest, match="expiry"):
            await registry.create_key("acme", expires_s=5)
        with pytest.raises(InvalidRequest, match="models"):
            await registry.create_key("acme", models=[])
        with pytest.raises(InvalidRequest, match="name"):
            await registry.create_key("acme", name="a\nb")
        assert await registry.keys("acme") == []

    play(scene)


def test_a_key_changes_only_where_it_is_told(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme")
        key = (await world.registry.create_key("acme", name="x", models=["a"])).key
        changed = await world.registry.change_key(key.id, name="y")
        assert (changed.name, changed.models, changed.expires_s) == ("y", ("a",), None)
        changed = await world.registry.change_key(key.id, models=None, expires_s=int(world.wall_s) + 9)
        assert (changed.name, changed.models, changed.expires_s) == ("y", None, int(world.wall_s) + 9)

    play(scene)


def test_neither_the_database_nor_a_record_holds_a_secret(play: Any) -> None:
    async def scene(world: World) -> None:
        await world.registry.create_tenant("acme")
        issued = await world.registry.create_key("acme")
        secret = issued.text.rpartition("-")[2]
        async with world.database.transaction(writes=False) as tx:
            assert secret not in str(await tx.fetch("SELECT * FROM keys"))
        assert secret not in repr(issued)
        assert issued.key.digest not in repr(issued)

    play(scene)


def test_digests_belong_to_one_key_and_one_pepper() -> None:
    one, other = Presented("a" * 12, "b" * 52), Presented("c" * 12, "b" * 52)
    pepper = Pepper("p")
    assert pepper.matches(one, pepper.digest(one))
    assert not pepper.matches(other, pepper.digest(one))
    assert not Pepper("q").matches(one, pepper.digest(one))


def test_a_key_is_taken_apart_as_it_was_spelled() -> None:
    assert parse(spell("a" * 12, "b" * 52)) == ("a" * 12, "b" * 52)
    assert parse("hr-short-x") is None
