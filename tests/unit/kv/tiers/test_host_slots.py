from __future__ import annotations

from headrace.kv.tiers.host_slots import Entry, HostSlots


def take(slots: HostSlots, key: bytes, *, worth: float = 1.0, now: float = 0.0, by_io: bool = False) -> Entry:
    entry = slots.take(key, worth, now, by_io=by_io)
    assert entry is not None
    slots.check()
    return entry


def test_room_is_made_by_giving_up_what_is_worth_least() -> None:
    slots = HostSlots(2)
    take(slots, b"cheap", worth=1.0)
    take(slots, b"dear", worth=5.0)
    take(slots, b"new", worth=2.0)
    assert b"cheap" not in slots
    assert slots.take(b"poor", 0.1, 0.0, by_io=False) is None
    assert (b"dear" in slots, b"new" in slots, b"poor" in slots) == (True, True, False)
    slots.check()


def test_held_read_and_unfilled_entries_are_not_given_up() -> None:
    slots = HostSlots(3)
    slots.hold(take(slots, b"held"))
    take(slots, b"read").num_readers = 1
    assert not take(slots, b"filling", by_io=True).is_filled
    assert slots.take(b"new", 99.0, 0.0, by_io=False) is None
    slots.release(b"held")
    take(slots, b"new", worth=99.0)
    assert b"held" not in slots


def test_io_gets_a_slot_only_after_the_last_step_that_touches_it() -> None:
    slots = HostSlots(1)
    entry = take(slots, b"a")
    slots.note_planned()
    assert not slots.is_settled(entry)
    slots.drop(b"a")
    assert slots.take(b"b", 1.0, 0.0, by_io=True) is None
    assert slots.take(b"c", 1.0, 0.0, by_io=False) is not None, "a copy in a later step may have it at once"
    slots.note_planned()
    slots.drop(b"c")
    slots.note_committed()
    assert slots.take(b"b", 1.0, 0.0, by_io=True) is None, "the second step still writes to it"
    slots.note_committed()
    take(slots, b"b", by_io=True)


def test_a_load_fences_its_slot_like_a_save() -> None:
    slots = HostSlots(1)
    take(slots, b"a")
    slots.note_planned()
    slots.note_committed()
    assert slots.is_settled(slots.use(b"a", 1.0)) is False
    slots.settle()
    entry = slots.get(b"a")
    assert entry is not None
    slots.note_planned()
    assert not slots.is_settled(entry)
    slots.settle()
    assert slots.is_settled(entry)
