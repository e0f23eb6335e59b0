"""Ids from a stock: never the same twice, whoever asks and however often the stock is filled."""

from __future__ import annotations

import threading

from headrace.core.random_ids import random_id


def test_ids_differ_across_threads_and_fillings() -> None:
    drawn: list[list[str]] = [[] for _ in range(4)]

    def draw(into: list[str]) -> None:
        into.extend(random_id() for _ in range(1_000))

    threads = [threading.Thread(target=draw, args=(into,)) for into in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [each for into in drawn for each in into]
    assert len(set(ids)) == len(ids) == 4_000
    assert {len(each) for each in ids} == {32}


def test_an_id_may_be_shorter() -> None:
    assert len(random_id(8)) == 16
