"""The bucket behind requests and tokens per period: it holds `amount`, fills evenly in one period, never over.

Pure functions on one number: when the bucket will be full again, in nanoseconds. Taking moves that moment away, giving
back moves it closer; what may go is what leaves it at most one period ahead. Nothing is stored per request and there is
no boundary at which twice the amount could pass at once.
Source: the generic cell rate algorithm, ITU-T I.371, in its virtual scheduling form.
"""

from __future__ import annotations


def taken_ns(num: int, amount: int, period_ns: int) -> int:
    """Return the time in which `num` of `amount` fill up again."""
    return -(-num * period_ns // amount)


def wait_ns(full_ns: int, now_ns: int, num: int, amount: int, period_ns: int) -> int:
    """Return how long until `num` can be taken; 0: now. More than the bucket holds can be taken when it is full."""
    need_ns = taken_ns(min(num, amount), amount, period_ns)
    return max(0, max(full_ns, now_ns) + need_ns - period_ns - now_ns)


def take(full_ns: int, now_ns: int, num: int, amount: int, period_ns: int) -> int:
    """Return when the bucket will be full after `num` are taken; a negative `num` gives back."""
    if num < 0:
        return full_ns - taken_ns(-num, amount, period_ns)
    return max(full_ns, now_ns) + taken_ns(num, amount, period_ns)


def remaining(full_ns: int, now_ns: int, amount: int, period_ns: int) -> int:
    """Return how many are in the bucket now."""
    missing_ns = max(0, full_ns - now_ns)
    return max(0, (period_ns - missing_ns) * amount // period_ns)
