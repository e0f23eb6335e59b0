"""The gateway's database: SQLite in this process, or Postgres for several gateways."""

from headrace.gateway.store.database import Cell, Database, Deadlock, Row, RuleBroken, Transaction, Value
from headrace.gateway.store.migrations import migrate
from headrace.gateway.store.url import open_database

__all__ = ["Cell", "Database", "Deadlock", "Row", "RuleBroken", "Transaction", "Value", "migrate", "open_database"]
