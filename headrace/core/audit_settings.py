"""Settings of the audit log. `core.settings` reads them; the log itself is in the gateway's database."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The audit log, where there is a database.

    record             what leaves a row: all calls and changes, changes of the administration alone, or none
    content            what was asked and answered: none of it, redacted (addresses, numbers, secrets taken out), or
                       full; either is encrypted and needs audit.key
    max_content_bytes  of a request and of an answer that are kept at most
    key                where the key of the log is kept, env:NAME or file:PATH, made by `headrace audit key new`; with
                       it rows are sealed, so that who can write to the database cannot forge them
    old_keys           places of earlier keys, to read and check what was written under them
    on_failure         when the database is gone and max_buffered rows wait: serve on and count what is lost, or refuse
    max_buffered       rows that wait in memory for the database at most
    retention_days     days that rows are kept, those on hold excepted; 0: for ever
    """

    record: Literal["all", "changes", "none"] = "all"
    content: Literal["none", "redacted", "full"] = "none"
    max_content_bytes: Count = 64 << 10
    key: str | None = None
    old_keys: tuple[str, ...] = ()
    on_failure: Literal["serve", "refuse"] = "serve"
    max_buffered: Count = 10_000
    retention_days: Annotated[int, msgspec.Meta(ge=0)] = 365
