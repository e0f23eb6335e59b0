"""The GGUF container: what is in a good file comes out, and a bad file says where it is bad."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core.errors import ConfigError, ModelFileBroken, UnsupportedModel
from headrace.model.gguf import GgufFile

Save = Callable[[str, bytes], Path]


def good(files: Any) -> bytes:
    metadata = {"general.name": "x", "a.flag": True, "a.list": [1, 2, 3], "a.words": ["één", "", "三"], "a.real": 0.5}
    tensors = {"first": files.f32(files.floats(3, 4)), "second": ("Q8_0", (2, 32), bytes(68))}
    data: bytes = files.gguf(metadata, tensors)
    return data


def test_metadata_of_every_kind_comes_out_as_python_values(files: Any, save: Save) -> None:
    file = GgufFile(save("m.gguf", good(files)))
    assert dict(file.metadata) == {
        "general.name": "x",
        "a.flag": True,
        "a.list": [1, 2, 3],
        "a.words": ["één", "", "三"],
        "a.real": 0.5,
    }
    assert list(file.metadata.under("general.")) == ["general.name"]


def test_metadata_outlives_the_file(files: Any, save: Save) -> None:
    file = GgufFile(save("m.gguf", good(files)))
    metadata = file.metadata
    file.close()
    file.close()
    assert metadata["a.words"] == ["één", "", "三"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_tensor_bytes_are_those_that_were_written(files: Any, save: Save, version: int, alignment: int) -> None:
    values = files.floats(3, 4)
    data = files.gguf(
        {"general.alignment": alignment},
        {"other": files.f32(files.floats(5)), "wanted": files.f32(values)},
        version=version,
        alignment=alignment,
    )
    file = GgufFile(save("m.gguf", data))
    rows = file.rows(file.tensors["wanted"])
    assert rows.shape == (3, 16)
    assert np.array_equal(rows.copy().view("<f4"), values)
    assert not rows.flags.writeable


def test_a_view_stays_readable_after_close(files: Any, save: Save) -> None:
    values = files.floats(3, 4)
    file = GgufFile(save("m.gguf", files.gguf({}, {"w": files.f32(values)})))
    rows = file.rows(file.tensors["w"])
    file.close()
    assert rows.tobytes() == values.tobytes()
    with pytest.raises(ValueError, match="closed"):
        file.rows(file.tensors["w"])


def test_a_truncated_file_names_the_tensor_and_the_offsets(files: Any, save: Save) -> None:
    data = good(files)
    with pytest.raises(ModelFileBroken, match=rf"tensor 'second' needs bytes .* but the file ends at {len(data) - 1}"):
        GgufFile(save("m.gguf", data[:-1]))


def test_every_shorter_file_is_refused(files: Any, save: Save) -> None:
    data = good(files)
    for length in range(0, len(data), 7):
        with pytest.raises(ModelFileBroken):
            GgufFile(save("m.gguf", data[:length]))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_flipped_byte_is_read_or_refused_but_never_crashes(files: Any, save: Save, data: st.DataObject) -> None:
    whole = bytearray(good(files))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        file = GgufFile(save("m.gguf", bytes(whole)))
        dict(file.metadata)
    except (ModelFileBroken, UnsupportedModel):
        return
    assert all(0 < file.rows(entry).size < len(whole) for entry in file.tensors.values())
    file.close()


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (lambda d: b"GGML" + d[4:], "not a GGUF file"),
        (lambda d: d[:8] + struct.pack("<Q", 1 << 60) + d[16:], "number of tensors is .* limit 131,072"),
        (lambda d: d[:16] + struct.pack("<Q", 1 << 60) + d[24:], "number of pairs is .* limit 65,536"),
        (lambda d: d[:24] + struct.pack("<Q", 1 << 40) + d[32:], "length of metadata key 0 is .* limit 1,024"),
        (
            lambda d: d.replace(struct.pack("<IQ", 4, 3), struct.pack("<IQ", 4, 1 << 50), 1),
            "length of metadata 'a.list'",
        ),
        (lambda d: d.replace(struct.pack("<IQ", 4, 3), struct.pack("<IQ", 4, 1 << 24), 1), "ends inside .*'a.list'"),
        (lambda d: d.replace(struct.pack("<IQ", 8, 3), struct.pack("<IQ", 8, 1 << 20), 1), "ends inside .*'a.words'"),
        (
            lambda d: d.replace(struct.pack("<IQ", 8, 3), struct.pack("<IQ", 9, 3), 1),
            "items of .*'a.words' have type 9",
        ),
        (lambda d: d.replace(b"second" + struct.pack("<I", 2), b"second" + struct.pack("<I", 9)), "has 9 dimensions"),
        (lambda d: d.replace(struct.pack("<QQ", 32, 2), struct.pack("<QQ", 33, 2)), "impossible for Q8_0"),
        (lambda d: d.replace(struct.pack("<QQ", 32, 2), struct.pack("<QQ", 32, 0)), "impossible for Q8_0"),
        (
            lambda d: d.replace(struct.pack("<QQ", 32, 2), struct.pack("<QQ", 32, 1 << 62)),
            "tensor 'second' needs bytes",
        ),
        (lambda d: d.replace(struct.pack("<IQ", 8, 64), struct.pack("<IQ", 8, 65)), "not a multiple of 32"),
        (lambda d: d.replace(b"a.flag", b"a.real"), "'a.real' appears twice"),
        (lambda d: d.replace(b"general.name", b"general.\xff\xff\xff\xff"), "not UTF-8"),
    ],
)
def test_an_impossible_number_is_named(files: Any, save: Save, patch: Callable[[bytes], bytes], message: str) -> None:
    data = patch(good(files))
    assert data != good(files)
    with pytest.raises(ModelFileBroken, match=message):
        GgufFile(save("m.gguf", data))


def test_an_alignment_that_is_no_power_of_two_is_refused(files: Any, save: Save) -> None:
    data = files.gguf({"general.alignment": 48}, {})
    with pytest.raises(ModelFileBroken, match=r"general.alignment is 48"):
        GgufFile(save("m.gguf", data))


def test_a_quantization_that_is_not_served_is_named(files: Any, save: Save) -> None:
    data = files.gguf({}, {"blk.0.x": (23, (2, 256), bytes(272))})
    with pytest.raises(UnsupportedModel, match=r"'blk.0.x' has type IQ4_XS.*Q4_K"):
        GgufFile(save("m.gguf", data))


@pytest.mark.parametrize(("version", "message"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_a_version_that_is_not_served_is_named(files: Any, save: Save, version: int, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        GgufFile(save("m.gguf", files.gguf({}, {}, version=version)))


def test_an_empty_file_and_a_missing_file_are_told_apart(save: Save, tmp_path: Path) -> None:
    with pytest.raises(ModelFileBroken, match="is empty"):
        GgufFile(save("m.gguf", b""))
    with pytest.raises(ConfigError, match="No such file"):
        GgufFile(tmp_path / "none.gguf")
