"""What a request is charged where its upstream reports a cost: price or report, and no hard budget is passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason, Usage
from headrace.gateway.ledger import usage as usage_by
from tests.gateway_scene import Scene, play
from tests.unit.gateway.admission.test_stage import Scripted, front, request, take, token

TOLD = ("cost_nano", "reported_nano", "priced_nano", "price_source", "cached_nano", "output_nano")


async def settled(s: Scene) -> tuple[Any, ...]:
    await s.written()
    (row,) = await s.rows(f"SELECT {', '.join(TOLD)} FROM settlements")
    return tuple(row[name] for name in TOLD)


def answered(reported: int | None, *, is_charged: bool) -> Scripted:
    """An answer of 5 + 3 tokens, which is 8 nano-dollars by the price."""
    usage = Usage(
        prompt_tokens=5,
        completion_tokens=3,
        cached_tokens=1,
        reported_nano=reported,
        cost_nano=reported if is_charged else None,
    )
    return Scripted(token(1), token(2), token(3, finish=FinishReason.STOP, usage=usage))


def told(deltas: list[Delta]) -> tuple[int | None, str | None]:
    assert deltas[-1].usage is not None
    return deltas[-1].usage.cost_nano, dict(deltas[-1].headers).get("x-headrace-cost-usd")


def test_a_report_is_noted_beside_the_price(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.load()
        deltas = await take(front(s, answered(80, is_charged=False)), request())
        assert told(deltas) == (8, "0.000000008")
        assert await settled(s) == (8, 80, 8, "config", 1, 3)
        (line,) = await usage_by(s.database, "model", 0, 2**62)
        assert (line.charged_nano, line.reported, line.reported_nano) == (8, 1, 80)
        assert (line.compared_nano, line.priced_nano, line.unpriced) == (80, 8, 0)

    play(url, scene)


def test_a_report_is_charged_where_the_settings_say_so(tmp_path: Path) -> None:
    async def scene(s: Scene) -> None:
        await s.load()
        deltas = await take(front(s, answered(80, is_charged=True)), request())
        assert told(deltas) == (80, "0.00000008")
        assert await settled(s) == (80, 80, 8, "reported", 10, 30)

    play(f"sqlite:///{tmp_path / 'a.db'}", scene)


def test_a_report_is_charged_where_no_price_is_known(tmp_path: Path) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000, is_hard=False)
        await s.load()
        deltas = await take(front(s, answered(80, is_charged=True)), request(model="unpriced"))
        assert told(deltas) == (80, "0.00000008")
        assert await settled(s) == (80, 80, None, "reported", None, None)
        assert await s.accounts() == [(80, 0)]
        (line,) = await usage_by(s.database, "model", 0, 2**62)
        assert (line.unpriced, line.reported_nano, line.compared_nano) == (0, 80, 0)

    play(f"sqlite:///{tmp_path / 'a.db'}", scene)


@pytest.mark.parametrize(("is_hard", "charged"), [(True, 55), (False, 8000)])
def test_a_hard_budget_is_not_passed_whatever_is_reported(tmp_path: Path, is_hard: bool, charged: int) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000, is_hard=is_hard)
        await s.load()
        deltas = await take(front(s, answered(8000, is_charged=True)), request())
        assert told(deltas)[0] == charged
        assert (await settled(s))[:3] == (charged, 8000, 8)
        assert await s.accounts() == [(charged, 0)]

    play(f"sqlite:///{tmp_path / 'a.db'}", scene)
