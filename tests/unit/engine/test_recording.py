from __future__ import annotations

from headrace.engine.recording import RecordingScheduler
from headrace.sched import Scheduler

# They change nothing that a later decision depends on.
QUESTIONS = {"check", "check_pin", "check_reach", "check_search", "live", "step_costs", "situation"}
# Saves the cache at the very end, after `abort_all`, below the pool only.
AFTERWARDS = {"save_all"}
FOR_ACCOUNTS = {"note_time"}  # nothing is decided by it


def test_every_command_of_the_scheduler_is_recorded() -> None:
    commands = {
        name
        for name, value in vars(Scheduler).items()
        if callable(value) and not name.startswith("_") and not isinstance(value, property)
    }
    assert commands - set(vars(RecordingScheduler)) == QUESTIONS | AFTERWARDS | FOR_ACCOUNTS
