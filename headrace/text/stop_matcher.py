"""Finds stop strings in text that arrives in pieces of any size.

Owns the automaton of one request. Pure text: knows no tokens.
Invariant: however a text is split into pieces, the same characters are released and the same match is found.
The match that ends first wins; of those that end together, the longest. `held` is the longest suffix of the text so far
that is a proper prefix of some stop string, so nothing is kept back that could not still become a match.
Cost: O(1) amortised a character, O(total length of the stop strings) to build.
Callers: `incremental.py`, `gateway.upstream.resuming`. Source: Aho and Corasick 1975.

    text   … t h e <|e n          stops: "<|end|>", "end"
           released ─┘└ held (4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Fed(NamedTuple):
    """What one piece of text released, and the stop string it completed."""

    released: str
    match: str | None


class StopMatcher:
    """Holds text back while a stop string may still match. After a match it is spent."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self._depth = [0]
        self._match: list[str | None] = [None]
        for stop in stop_strings:
            if stop:
                self._insert(stop)
        self._link()
        self._state = 0
        self._held = ""

    @property
    def held(self) -> str:
        """Text that waits for what comes next."""
        return self._held

    def feed(self, text: str) -> Fed:
        """Take more text; return what no stop string can claim any more, and the match if there is one."""
        buffer = self._held + text
        state = self._state
        following, fallback, matches = self._next, self._fallback, self._match
        for at in range(len(self._held), len(buffer)):
            char = buffer[at]
            while state and char not in following[state]:
                state = fallback[state]
            state = following[state].get(char, 0)
            match = matches[state]
            if match is not None:
                self._held, self._state = "", 0
                return Fed(buffer[: at + 1 - len(match)], match)
        self._state = state
        cut = len(buffer) - self._depth[state]
        self._held = buffer[cut:]
        return Fed(buffer[:cut], None)

    def flush(self) -> str:
        """Release what is held: no more text comes."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            found = self._next[state].get(char)
            if found is None:
                found = len(self._next)
                self._next[state][char] = found
                self._next.append({})
                self._fallback.append(0)
                self._depth.append(self._depth[state] + 1)
                self._match.append(None)
            state = found
        self._match[state] = stop

    def _link(self) -> None:
        """Give each state its fallback, and the longest stop string that ends there, by breadth."""
        queue = list(self._next[0].values())
        for state in queue:
            for char, child in self._next[state].items():
                queue.append(child)
                back = self._fallback[state]
                while back and char not in self._next[back]:
                    back = self._fallback[back]
                self._fallback[child] = self._next[back].get(char, 0)
                if self._match[child] is None:
                    self._match[child] = self._match[self._fallback[child]]
