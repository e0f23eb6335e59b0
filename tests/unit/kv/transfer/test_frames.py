from __future__ import annotations

import pytest

from headrace.core.errors import OutOfMemory
from headrace.kv.transfer import FrameCodec, HostPool
from headrace.kv.transfer.frames import HEADER_BYTES

KEY = b"k" * 20


@pytest.fixture
def frame() -> memoryview:
    pool = HostPool(2, 100)
    pool.slot(1)[:] = bytes(range(100))
    return pool.frame(1)


def codec(secret: bytes = b"s" * 32, format_id: bytes = b"f" * 16) -> FrameCodec:
    return FrameCodec(secret, format_id, 100)


def test_a_sealed_frame_is_whole_and_keeps_its_block(frame: memoryview) -> None:
    codec().seal(KEY, frame)
    assert codec().is_whole(KEY, frame, frame.nbytes)
    assert bytes(frame[HEADER_BYTES:]) == bytes(range(100))


@pytest.mark.parametrize("place", [0, 9, 20, 30, 50, 70, HEADER_BYTES, HEADER_BYTES + 99])
def test_one_flipped_bit_anywhere_that_counts_is_found(frame: memoryview, place: int) -> None:
    codec().seal(KEY, frame)
    frame[place] ^= 4
    assert not codec().is_whole(KEY, frame, frame.nbytes)


def test_frames_of_another_key_length_format_or_secret_are_not_ours(frame: memoryview) -> None:
    codec().seal(KEY, frame)
    assert not codec().is_whole(b"x" * 20, frame, frame.nbytes)
    assert not codec().is_whole(KEY, frame, frame.nbytes - 1)
    assert not codec(format_id=b"g" * 16).is_whole(KEY, frame, frame.nbytes)
    assert not codec(secret=b"t" * 32).is_whole(KEY, frame, frame.nbytes)


def test_slots_do_not_overlap_and_absurd_sizes_are_refused() -> None:
    pool = HostPool(3, 10)
    for index in range(3):
        pool.slot(index)[:] = bytes([index]) * 10
    assert [bytes(pool.slot(index)) for index in range(3)] == [bytes([index]) * 10 for index in range(3)]
    with pytest.raises(OutOfMemory, match=r"lower engine\.kv_ram_bytes"):
        HostPool(1 << 40, 1 << 40)
