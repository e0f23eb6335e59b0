"""`headrace ledger export`: the same rows in both formats, by a command as a person would type it."""

from __future__ import annotations

import asyncio
import csv
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cli import main
from headrace.gateway.admission.rows import SETTLEMENT
from headrace.gateway.budgets import TokenCounts
from headrace.gateway.store import migrate, open_database
from tests.gateway_scene import Scene, settlement

NUM_ROWS = 1_203  # more than one page of the export


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """A database with settled requests, one of them without a price."""
    url = f"sqlite:///{tmp_path / 'a.db'}"

    async def fill() -> None:
        database = open_database(url)
        await database.open()
        await migrate(database)
        scene = Scene(database)
        asks = [scene.ask(10, 5, price=None) if i == 7 else scene.ask(10, 5) for i in range(NUM_ROWS)]
        for grant in await asyncio.gather(*map(scene.gateway.reserve, asks)):
            scene.settle(grant, 10, 5)
        await scene.written()
        await database.close()

    asyncio.run(fill())
    return url


def export(url: str, path: Path, *args: str) -> int:
    return main(["ledger", "export", str(path), *args, "--database", url])


def test_csv_has_every_row_and_column(ledger: str, tmp_path: Path) -> None:
    assert export(ledger, tmp_path / "rows.csv") == 0
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["id"] for row in rows}) == NUM_ROWS
    assert list(rows[0]) == list(SETTLEMENT)
    assert sorted({row["cost_nano"] for row in rows}) == ["", "15"]


def test_parquet_has_what_csv_has_with_types_and_nulls(ledger: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")
    assert export(ledger, tmp_path / "rows.parquet") == 0
    assert export(ledger, tmp_path / "named", "--format", "parquet") == 0
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.equals(parquet.read_table(tmp_path / "named"))
    assert table.column_names == list(SETTLEMENT)
    assert (table.num_rows, table["cost_nano"].null_count, str(table["cost_nano"].type)) == (NUM_ROWS, 1, "int64")
    assert sum(cost or 0 for cost in table["cost_nano"].to_pylist()) == 15 * (NUM_ROWS - 1)
    assert export(ledger, tmp_path / "rows.csv") == 0
    with (tmp_path / "rows.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == table["id"].to_pylist()


def test_an_export_of_nothing_has_its_columns(ledger: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")
    assert export(ledger, tmp_path / "none.parquet", "--since", "2020-01-01", "--until", "2020-01-02") == 0
    table = parquet.read_table(tmp_path / "none.parquet")
    assert (table.num_rows, table.column_names) == (0, list(SETTLEMENT))


def test_what_cannot_be_written_is_told_and_leaves_nothing(
    ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(ledger, tmp_path / "rows.xlsx") != 0
    assert "--format" in capsys.readouterr().err
    assert export(ledger, tmp_path / "nowhere" / "rows.csv") != 0
    assert "cannot be written" in capsys.readouterr().err
    absent: Any = None
    monkeypatch.setitem(sys.modules, "pyarrow", absent)
    assert export(ledger, tmp_path / "rows.parquet") != 0
    assert "headrace[parquet]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if "rows" in path.name] == []


def test_an_hours_writing_is_a_column_of_its_own(ledger: str) -> None:
    counts = TokenCounts(input_uncached=1, cache_write=2, cache_write_1h=4)
    assert counts.num_input == 7

    async def write() -> list[Any]:
        database = open_database(ledger)
        await database.open()
        scene = Scene(database)
        grant = await scene.gateway.reserve(scene.ask(10, 5))
        ended = settlement(grant, 0, 0, scene.gateway.now_ns())
        scene.gateway.settle(grant, msgspec.structs.replace(ended, counts=counts))
        await scene.written()
        rows = await scene.rows("SELECT input_uncached, cache_write, cache_write_1h FROM settlements ORDER BY 3 DESC")
        await database.close()
        return rows

    assert asyncio.run(write())[0] == {"input_uncached": 1, "cache_write": 2, "cache_write_1h": 4}
