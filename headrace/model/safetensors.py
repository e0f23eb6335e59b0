"""The safetensors container: the header of one mapped file, and a set of such files behind one index.

Owns the mappings. Invariant: once a `SafetensorsFile` is constructed, every tensor's bytes lie inside the file and are
as many as its shape and type say. Formats are checked when a tensor is asked for, so a buffer nobody reads may be of
any type.
Read by hand because numpy has no bfloat16, and a copy of the weights is what we are here to avoid.
Callers: `hf_checkpoint.py`. Source: the safetensors format description.

    | header length u64 | header: JSON {name: {dtype, shape, data_offsets}} | data |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ConfigError, ModelFileBroken, UnsupportedModel
from headrace.model.content import Content
from headrace.model.mapping import map_file, release
from headrace.quant.formats import Format
from headrace.quant.tensor import Tensor

INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 << 20
_MAX_INDEX_BYTES = 100 << 20
_MAX_ELEMENTS = 1 << 48

_FORMATS = {"F32": Format.F32, "F16": Format.F16, "BF16": Format.BF16}
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class _Entry(msgspec.Struct, frozen=True):
    """One tensor in the header; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct, frozen=True):
    """The index of a sharded checkpoint: tensor name → file name."""

    weight_map: dict[str, str]


class SafetensorsFile:
    """One mapped file. Raises ModelFileBroken naming tensor and offset when the bytes are not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map, self._state = map_file(path)
        try:
            self._start = self._header_end()
            self._entries = self._read_entries()
        except BaseException:
            self._map.close()
            raise
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(self._map, dtype=np.uint8)

    def names(self) -> Iterator[str]:
        """Yield the tensor names."""
        return iter(self._entries)

    def tensor(self, name: str) -> Tensor:
        """Return a view of a vector or matrix; UnsupportedModel for another rank or type."""
        if self._bytes is None:
            raise ValueError(f"{self.path.name} is closed")
        entry = self._entries[name]
        if entry.dtype not in _FORMATS:
            raise UnsupportedModel(
                f"{self.path}: tensor '{name}' has type {entry.dtype}, not served; served: {', '.join(_FORMATS)}"
            )
        if len(entry.shape) not in (1, 2) or min(entry.shape) < 1:
            raise UnsupportedModel(f"{self.path}: tensor '{name}' has shape {entry.shape}; vectors and matrices only")
        format = _FORMATS[entry.dtype]
        start, end = (self._start + offset for offset in entry.data_offsets)
        data = self._bytes[start:end].reshape(-1, format.row_bytes(entry.shape[-1]))
        return Tensor(name, format, entry.shape, data)

    def content(self) -> Content:
        """Return the whole file as bytes."""
        if self._bytes is None:
            raise ValueError(f"{self.path.name} is closed")
        return Content(self.path, self._state, self._bytes)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last tensor view does. Idempotent."""
        self._bytes = None
        release(self._map)

    def _header_end(self) -> int:
        """Return the offset where data starts."""
        size = len(self._map)
        length = int.from_bytes(self._map[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ModelFileBroken(
                f"{self.path}: header of {length:,} bytes at offset 0 does not fit the file of {size:,} bytes "
                f"(limit {_MAX_HEADER_BYTES:,}); download it again"
            )
        return 8 + length

    def _read_entries(self) -> dict[str, _Entry]:
        """Decode the header and check every extent."""
        try:
            raw = msgspec.json.decode(self._map[8 : self._start], type=dict[str, msgspec.Raw])
            raw.pop("__metadata__", None)
            entries = {name: msgspec.json.decode(value, type=_Entry) for name, value in raw.items()}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ModelFileBroken(
                f"{self.path}: header at offset 8 is not valid: {error}; download it again"
            ) from error
        available = len(self._map) - self._start
        for name, entry in entries.items():
            self._check_extent(name, entry, available)
        return entries

    def _check_extent(self, name: str, entry: _Entry, available: int) -> None:
        """Raise ModelFileBroken unless the tensor's bytes are inside the file and as many as its shape says."""
        start, end = entry.data_offsets
        where = f"{self.path}: tensor '{name}' at offset {self._start + start:,}"
        if entry.dtype not in _ITEM_BYTES:
            raise UnsupportedModel(f"{where} has unknown type '{entry.dtype}'")
        if any(size < 0 for size in entry.shape) or math.prod(entry.shape) > _MAX_ELEMENTS:
            raise ModelFileBroken(f"{where} has impossible shape {entry.shape}")
        if not 0 <= start <= end <= available:
            raise ModelFileBroken(
                f"{where} ends at {self._start + end:,} but the file ends at {self._start + available:,}; "
                "it is truncated, download it again"
            )
        needed = math.prod(entry.shape) * _ITEM_BYTES[entry.dtype]
        if end - start != needed:
            raise ModelFileBroken(f"{where} has {end - start:,} bytes; {entry.dtype} {entry.shape} needs {needed:,}")


class SafetensorsSet:
    """All tensors of a directory: one file, or the shards that its index names."""

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, SafetensorsFile] = {}
        try:
            self._file_of = self._open(directory)
        except BaseException:
            self.close()
            raise
        self._directory = directory

    def names(self) -> Iterator[str]:
        """Yield the tensor names of all files."""
        return iter(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """Return a view of one tensor; ModelFileBroken when no file has it."""
        if name not in self._file_of:
            raise ModelFileBroken(f"{self._directory}: tensor '{name}' is in none of the files; download them again")
        return self._files[self._file_of[name]].tensor(name)

    def contents(self) -> list[Content]:
        """Return every file as bytes, in the order of their names."""
        return [file.content() for _, file in sorted(self._files.items())]

    def close(self) -> None:
        """Let go of every file. Idempotent."""
        for file in self._files.values():
            file.close()

    def _open(self, directory: Path) -> dict[str, str]:
        """Open the files and return tensor name → file name."""
        if (directory / INDEX_NAME).is_file():
            return self._open_shards(directory)
        found = sorted(directory.glob("*.safetensors"))
        if not found:
            raise ConfigError(f"{directory} holds no weights: neither {INDEX_NAME} nor a .safetensors file")
        single = directory / "model.safetensors"
        if single not in found and len(found) > 1:
            raise ConfigError(f"{directory} holds {len(found)} .safetensors files but no {INDEX_NAME} to join them")
        path = single if single in found else found[0]
        self._files[path.name] = SafetensorsFile(path)
        return dict.fromkeys(self._files[path.name].names(), path.name)

    def _open_shards(self, directory: Path) -> dict[str, str]:
        """Open what the index names and check that each shard holds what it should."""
        weight_map = read_weight_map(directory / INDEX_NAME)
        for shard in sorted(set(weight_map.values())):
            if not (directory / shard).is_file():
                raise ModelFileBroken(f"{directory}: shard '{shard}' of {INDEX_NAME} is missing; download it again")
            self._files[shard] = SafetensorsFile(directory / shard)
        held = {shard: set(file.names()) for shard, file in self._files.items()}
        for name, shard in weight_map.items():
            if name not in held[shard]:
                raise ModelFileBroken(f"{directory / shard}: tensor '{name}' is missing; download the shard again")
        return weight_map


def read_weight_map(path: Path) -> dict[str, str]:
    """Return tensor name → shard of an index; a shard name that leaves the directory is ModelFileBroken."""
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ModelFileBroken(f"{path} has {path.stat().st_size:,} bytes, limit {_MAX_INDEX_BYTES:,}")
    try:
        weight_map = msgspec.json.decode(path.read_bytes(), type=_Index).weight_map
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileBroken(f"{path} is not a valid index: {error}; download it again") from error
    for name, shard in weight_map.items():
        if not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise ModelFileBroken(f"{path}: tensor '{name}' is said to be in {shard!r}, not a file of this directory")
    return weight_map


def is_plain_name(name: str) -> bool:
    """Say whether `name` is a file name and nothing more: no separators, no parent, nothing hidden."""
    return bool(name) and not name.startswith(".") and not set(name) & {"/", "\\", "\0", ":"} and len(name) < 256
