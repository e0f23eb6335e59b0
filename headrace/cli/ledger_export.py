"""The files of `headrace ledger export`: rows of the ledger as CSV or Parquet, written a page at a time.

Owns the formats. The only import of pyarrow, made when Parquet is asked for: extra `headrace[parquet]`.
Invariant: the columns are those of the ledger in its order, whatever is in the rows; an export of nothing has them too.
A file that could not be written whole is not left behind.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from headrace.core.errors import ConfigError
from headrace.gateway.admission.rows import SETTLEMENT
from headrace.gateway.ledger import RefusalRow
from headrace.gateway.store import Row

if TYPE_CHECKING:
    import pyarrow.parquet

FORMATS = ("csv", "parquet")
Columns = Mapping[str, str]  # by name: "text" or "bigint"
_TEXTS = ("id", "tenant", "key_id", "model", "reason")
REFUSAL: Columns = {name: "text" if name in _TEXTS else "bigint" for name in RefusalRow._fields}


class Sink(Protocol):
    """Takes the rows of an export."""

    def write(self, page: Sequence[Row]) -> None:
        """Write rows."""
        ...


@contextmanager
def open_export(path: Path, name: str | None, columns: Columns = SETTLEMENT) -> Iterator[Sink]:
    """Open a file in the format of that name, by default that of its suffix. Raises ConfigError."""
    form = name or path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise ConfigError(f"'{path.name}' is neither .csv nor .parquet; name the file so, or give --format")
    draft = path.with_name(path.name + ".part")
    try:
        with _csv(draft, columns) if form == "csv" else _parquet(draft, columns) as sink:
            yield sink
        draft.replace(path)
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror or err}; check directory and space") from err
    finally:
        draft.unlink(missing_ok=True)


class _CsvSink:
    def __init__(self, file: IO[str], columns: Columns) -> None:
        self._writer = csv.DictWriter(file, list(columns))
        self._writer.writeheader()

    def write(self, page: Sequence[Row]) -> None:
        self._writer.writerows(page)


@contextmanager
def _csv(path: Path, columns: Columns) -> Iterator[Sink]:
    with path.open("w", newline="", encoding="utf-8") as file:
        yield _CsvSink(file, columns)


class _ParquetSink:
    def __init__(self, writer: pyarrow.parquet.ParquetWriter) -> None:
        self._writer = writer

    def write(self, page: Sequence[Row]) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_pylist(list(page), schema=self._writer.schema))


@contextmanager
def _parquet(path: Path, columns: Columns) -> Iterator[Sink]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise ConfigError("Parquet needs pyarrow: pip install 'headrace[parquet]', or export .csv") from err
    kinds = {"text": pyarrow.string(), "bigint": pyarrow.int64()}
    schema = pyarrow.schema([(column, kinds[kind]) for column, kind in columns.items()])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        yield _ParquetSink(writer)
