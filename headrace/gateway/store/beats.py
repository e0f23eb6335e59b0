"""When what has been gathered is written: on a beat that all writers of a process share.

Owns nothing. Writers that gather for a while (the accounts, the audit log) write at the same moments, so that the
database's thread wakes once for them, and one sync of the disk covers them all. Nobody waits longer than one beat.
"""

from __future__ import annotations

BEAT_S = 0.04


def until_beat(now_s: float, every_s: float = BEAT_S) -> float:
    """Return the seconds from `now_s` until the next beat."""
    return every_s - now_s % every_s if every_s > 0 else 0.0
