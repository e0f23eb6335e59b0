"""The GGUF container: header, metadata and tensor table of one mapped file, checked before any byte is trusted.

Owns the mapping. Knows nothing of architectures: names, types and sizes come out as they are in the file.
Invariant: once `GgufFile` is constructed, every tensor's bytes lie inside the file, aligned, in a supported format.
Every count and length is compared with a limit and with the bytes that are left before memory is taken for it.
Callers: `gguf_checkpoint.py`. Source: the GGUF specification, versions 2 and 3, little-endian.

    | 'GGUF' | version u32 | tensors u64 | pairs u64 | key, type, value … | name, dims, type, offset … | pad | data |
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.model.content import Content
from headrace.model.mapping import map_file, release
from headrace.quant.formats import Format

MAGIC = b"GGUF"
_MAX_TENSORS = 1 << 17
_MAX_PAIRS = 1 << 16
_MAX_NAME_BYTES = 1 << 10
_MAX_STRING_BYTES = 1 << 26
_MAX_ARRAY = 1 << 25
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

_FORMATS = {
    0: Format.F32, 1: Format.F16, 2: Format.Q4_0, 3: Format.Q4_1, 6: Format.Q5_0, 7: Format.Q5_1, 8: Format.Q8_0,
    10: Format.Q2_K, 11: Format.Q3_K, 12: Format.Q4_K, 13: Format.Q5_K, 14: Format.Q6_K, 30: Format.BF16,
}  # fmt: skip
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of the tensor table. `shape` is row-major; `offset` counts from the start of the file."""

    name: str
    format: Format
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _PackedArray:
    """An array value, kept as its bytes until somebody asks: vocabularies are large and not always needed."""

    key: str
    item_type: int
    count: int
    raw: bytes

    def decode(self) -> list[object]:
        """Return the items; ModelFileBroken names the item that is not UTF-8."""
        if self.item_type != _STRING:
            numbers: list[object] = np.frombuffer(self.raw, dtype=_SCALARS[self.item_type]).tolist()
            return numbers
        items: list[object] = []
        raw, position, read_length = self.raw, 0, _U64.unpack_from
        try:
            for _ in range(self.count):
                start = position + 8
                position = start + read_length(raw, position)[0]
                items.append(raw[start:position].decode())
        except UnicodeDecodeError as error:
            raise ModelFileBroken(f"item {len(items)} of metadata array '{self.key}' is not UTF-8") from error
        return items


class Metadata(Mapping[str, object]):
    """Keys and values of a GGUF header. Scalars are Python values; arrays become lists when they are read.

    Holds copies, so it outlives the file it came from. An array is decoded on each access: keep what you use.
    """

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> object:
        value = self._values[key]
        return value.decode() if isinstance(value, _PackedArray) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def under(self, *prefixes: str) -> Metadata:
        """Return the part whose keys start with one of `prefixes`."""
        return Metadata({key: value for key, value in self._values.items() if key.startswith(prefixes)})


class GgufFile:
    """One mapped GGUF file. Raises ModelFileBroken or UnsupportedModel when it cannot be used whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map, self._state = map_file(path)
        try:
            cursor = _Cursor(self._map, path)
            num_tensors, num_pairs = _read_counts(cursor)
            self.metadata = Metadata(_read_pairs(cursor, num_pairs))
            self.tensors = _read_table(cursor, num_tensors, _alignment(self.metadata, path))
        except BaseException:
            self._map.close()
            raise
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(self._map, dtype=np.uint8)

    def rows(self, entry: TensorEntry) -> NDArray[np.uint8]:
        """Return a read-only view [rows, row_bytes] of a tensor; vectors have one row."""
        if self._bytes is None:
            raise ValueError(f"{self.path.name} is closed")
        data = self._bytes[entry.offset : entry.offset + entry.num_bytes]
        return data.reshape(-1, entry.format.row_bytes(entry.shape[-1]))

    def content(self) -> Content:
        """Return the whole file as bytes."""
        if self._bytes is None:
            raise ValueError(f"{self.path.name} is closed")
        return Content(self.path, self._state, self._bytes)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last tensor view does. Idempotent."""
        self._bytes = None
        release(self._map)


class _Cursor:
    """Reads forward through the header. Every read names what it was after when the file ends first."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position, self.size = data, path, 0, len(data)

    def broken(self, problem: str) -> ModelFileBroken:
        """Make the error for a problem at the current offset."""
        return ModelFileBroken(f"{self.path}: {problem} at offset {self.position:,}; download the file again")

    def need(self, count: int, what: str) -> None:
        """Raise unless `count` more bytes are in the file."""
        if count > self.size - self.position:
            raise self.broken(f"file of {self.size:,} bytes ends inside {what} ({count:,} bytes)")

    def take(self, count: int, what: str) -> bytes:
        """Read `count` bytes."""
        self.need(count, what)
        start, self.position = self.position, self.position + count
        return self.data[start : self.position]

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit integer."""
        return int.from_bytes(self.take(4, what), "little")

    def count(self, what: str, limit: int) -> int:
        """Read a 64-bit count that may not exceed `limit`."""
        value = int.from_bytes(self.take(8, what), "little")
        if value > limit:
            self.position -= 8
            raise self.broken(f"{what} is {value:,}, limit {limit:,}:")
        return value

    def text(self, what: str, limit: int) -> str:
        """Read a string of at most `limit` bytes."""
        raw = self.take(self.count(f"length of {what}", limit), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8:") from error

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings without decoding them."""
        data, position, size, read_length = self.data, self.position, self.size, _U64.unpack_from
        try:
            for _ in range(count):
                position += 8 + read_length(data, position)[0]
                if position > size:
                    break
        except struct.error:
            position = size + 1
        if position > size:
            raise self.broken(f"file of {size:,} bytes ends inside {what}, which starts")
        self.position = position


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """Read magic, version and the two counts."""
    if cursor.take(4, "the magic number") != MAGIC:
        cursor.position = 0
        raise cursor.broken("not a GGUF file: no 'GGUF'")
    version = cursor.u32("the version")
    if version not in (2, 3):
        if version >= 1 << 16:
            raise UnsupportedModel(f"{cursor.path}: big-endian GGUF is not served; convert it to little-endian")
        raise UnsupportedModel(f"{cursor.path}: GGUF version {version} is not served, only 2 and 3; convert it again")
    return cursor.count("the number of tensors", _MAX_TENSORS), cursor.count("the number of pairs", _MAX_PAIRS)


def _read_pairs(cursor: _Cursor, count: int) -> dict[str, object]:
    """Read the metadata pairs."""
    pairs: dict[str, object] = {}
    for i in range(count):
        key = cursor.text(f"metadata key {i}", _MAX_NAME_BYTES)
        if key in pairs:
            raise cursor.broken(f"metadata key '{key}' appears twice:")
        pairs[key] = _read_value(cursor, key, cursor.u32(f"type of '{key}'"))
    return pairs


def _read_value(cursor: _Cursor, key: str, value_type: int) -> object:
    """Read one value; arrays stay packed."""
    what = f"metadata '{key}'"
    if value_type == _STRING:
        return cursor.text(what, _MAX_STRING_BYTES)
    if value_type in _SCALARS:
        kind = np.dtype(_SCALARS[value_type])
        scalar: object = np.frombuffer(cursor.take(kind.itemsize, what), dtype=kind)[0].item()
        return scalar
    if value_type != _ARRAY:
        raise cursor.broken(f"{what} has unknown type {value_type}:")
    item_type = cursor.u32(f"item type of {what}")
    count = cursor.count(f"length of {what}", _MAX_ARRAY)
    start = cursor.position
    if item_type == _STRING:
        cursor.skip_strings(count, what)
    elif item_type in _SCALARS:
        size = count * np.dtype(_SCALARS[item_type]).itemsize
        cursor.need(size, what)
        cursor.position += size
    else:
        raise cursor.broken(f"items of {what} have type {item_type}, which is not served:")
    return _PackedArray(key, item_type, count, cursor.data[start : cursor.position])


def _alignment(metadata: Metadata, path: Path) -> int:
    """Return the alignment of tensor data: 32 unless the file says otherwise."""
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 1 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        raise ModelFileBroken(f"{path}: general.alignment is {value}, not a power of two up to {_MAX_ALIGNMENT:,}")
    return value


def _read_table(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorEntry]:
    """Read the tensor table and prove that every tensor lies inside the file."""
    relative: list[TensorEntry] = []
    for i in range(count):
        name = cursor.text(f"name of tensor {i}", _MAX_NAME_BYTES)
        num_dims = cursor.u32(f"rank of tensor '{name}'")
        if not 1 <= num_dims <= _MAX_DIMS:
            raise cursor.broken(f"tensor '{name}' has {num_dims} dimensions, limit {_MAX_DIMS}:")
        sizes = struct.unpack(f"<{num_dims}Q", cursor.take(8 * num_dims, f"shape of tensor '{name}'"))
        stored_type = cursor.u32(f"type of tensor '{name}'")
        if stored_type not in _FORMATS:
            label = _OTHER_TYPES.get(stored_type, f"number {stored_type}")
            served = ", ".join(format.label for format in Format)
            raise UnsupportedModel(f"{cursor.path}: tensor '{name}' has type {label}, not served; served: {served}")
        format = _FORMATS[stored_type]
        if min(sizes) < 1 or sizes[0] % format.block_size:
            raise cursor.broken(f"tensor '{name}' has shape {sizes[::-1]}, impossible for {format.label}:")
        num_bytes = format.row_bytes(sizes[0])
        for size in sizes[1:]:
            num_bytes *= size
        offset = _U64.unpack(cursor.take(8, f"offset of tensor '{name}'"))[0]
        if offset % alignment:
            raise cursor.broken(f"tensor '{name}' starts at {offset:,}, not a multiple of {alignment}:")
        relative.append(TensorEntry(name, format, tuple(sizes[::-1]), offset, num_bytes))

    base = (cursor.position + alignment - 1) // alignment * alignment
    table: dict[str, TensorEntry] = {}
    for entry in relative:
        start, end = base + entry.offset, base + entry.offset + entry.num_bytes
        if end > cursor.size:
            raise ModelFileBroken(
                f"{cursor.path}: tensor '{entry.name}' needs bytes {start:,} to {end:,} but the file ends at "
                f"{cursor.size:,}; it is truncated, download it again"
            )
        if entry.name in table:
            raise ModelFileBroken(f"{cursor.path}: tensor '{entry.name}' at offset {start:,} appears twice")
        table[entry.name] = TensorEntry(entry.name, entry.format, entry.shape, start, entry.num_bytes)
    return table
