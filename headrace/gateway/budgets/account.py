"""One account of a budget: what was spent in its period, and what is set aside for requests under way.

Plain state, changed only by `admission.book`. A rolling budget keeps its sum in slices of a sixtieth of its window: a
slice counts until all of it has left the window, so the sum is never less than what was spent in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.gateway.budgets.rules import account_window_s

SLICES = 60


@dataclass(slots=True, kw_only=True)
class Spend:
    """One account. `window_s` None: not rolling, all that was ever spent counts."""

    id: str
    spent_nano: int = 0
    reserved_nano: int = 0
    window_s: int | None = None
    slices: dict[int, int] = field(default_factory=dict)

    @classmethod
    def named(cls, account: str) -> Spend:
        """Return an empty account; its name says whether it rolls."""
        return cls(id=account, window_s=account_window_s(account))

    def roll(self, now_s: int) -> None:
        """Forget slices that have left the window."""
        if self.window_s is None:
            return
        oldest = (now_s - self.window_s) // self._slice_s
        for index in [index for index in self.slices if index < oldest]:
            self.spent_nano -= self.slices.pop(index)

    def spend(self, nano: int, now_s: int) -> None:
        """Add what was spent just now."""
        self.spent_nano += nano
        if self.window_s is not None and nano:
            index = now_s // self._slice_s
            self.slices[index] = self.slices.get(index, 0) + nano

    def frees_at_s(self, nano: int) -> int | None:
        """Return when so much of what was spent will have left the window; None: it never will, or need not."""
        if self.window_s is None or nano <= 0:
            return None
        for index in sorted(self.slices):
            nano -= self.slices[index]
            if nano <= 0:
                return (index + 1) * self._slice_s + self.window_s
        return None

    def left(self, limit_nano: int) -> int:
        """Return what neither is spent nor set aside; negative when a limit was lowered."""
        return limit_nano - self.spent_nano - self.reserved_nano

    @property
    def _slice_s(self) -> int:
        assert self.window_s is not None
        return max(1, self.window_s // SLICES)
