"""The gateway of one server process: its database and everything that remembers it, opened and closed together.

Owns the order of opening and closing, and the order of the stages. Built by `app.serving` where there is a database.

    gatekeeper ─► api ─► permission ─► admission ─► upstream
        └── the audit log hears of every call at its end, and of every change in its transaction
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headrace.core.audit import Auditor
from headrace.core.audit_settings import AuditSettings
from headrace.core.caller import Caller, Gatekeeper
from headrace.core.delta import Usage
from headrace.core.errors import HeadraceError
from headrace.core.gateway_settings import GatewaySettings
from headrace.core.protocols import Clock, Upstream
from headrace.core.request import RequestId
from headrace.core.settings import read_secret
from headrace.core.stats import AdmissionStats, AuditStats, EngineTime, RequestStats
from headrace.econ import EngineBuild, machine_rate
from headrace.gateway.admin import AdminRoutes, admin_routes
from headrace.gateway.admission import Admission, Authority, Rulebook
from headrace.gateway.admission.recent import RecentSettlements
from headrace.gateway.admission.stage import AdmissionRules
from headrace.gateway.audit.log import AuditLog
from headrace.gateway.budgets.price import PriceOf
from headrace.gateway.budgets.price_book import read_book
from headrace.gateway.budgets.price_table import PriceTable
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.identity import Directory
from headrace.gateway.identity.gate import Gate
from headrace.gateway.identity.permission import Permission
from headrace.gateway.ledger import Digests, LedgerRecorder, read_digest_key
from headrace.gateway.pipeline import Pipeline
from headrace.gateway.store import migrate, open_database
from headrace.gateway.store.watch import Watch

_AUDIT = AuditSettings()


class Gateway:
    """Keys, limits and budgets of one server process."""

    def __init__(
        self,
        url: str,
        settings: GatewaySettings,
        clock: Clock,
        audit: AuditSettings = _AUDIT,
        read_secret: Callable[[str], str] = read_secret,
    ) -> None:
        self._database = open_database(url)
        self._directory = Directory()
        self._rulebook = Rulebook()
        self._watch = Watch(self._database, clock, [self._directory, self._rulebook])
        self._authority = Authority(self._database, clock, lease_s=settings.lease_s, lend_share=settings.lend_share)
        book = None if settings.price_book is None else read_book(Path(settings.price_book).expanduser())
        self.price_of: PriceOf = PriceTable(settings.prices, book)
        rate = None if settings.usd_per_hour is None else machine_rate(settings.usd_per_hour)
        self._recorder = LedgerRecorder(self._database, rate, every_s=settings.ledger_s)
        self._audit = None if audit.record == "none" else AuditLog(self._database, audit, clock, read_secret)
        self._keeps_digests = settings.digests
        self._recent = RecentSettlements()
        self._admission = Admission(
            self._authority,
            self._rulebook,
            self.price_of,
            AdmissionRules(
                least_output=settings.least_output,
                default_output=settings.default_output,
                is_unpriced_allowed=settings.unpriced == "allow",
            ),
            self._recorder.claim,
            clock,
            self._hear,
        )
        self._stages = (Permission(self._directory), self._admission)
        self.gatekeeper: Gatekeeper = Gate(self._directory, self._watch)

    @property
    def has_keys(self) -> bool:
        """Say whether callers need keys."""
        return self._directory.has_keys

    def _hear(self, settlement: Settlement) -> None:
        self._recent.hear(settlement)
        if self._audit is not None:
            self._audit.writer.hear(settlement)

    def note_refused(self, caller: Caller, model: str, refusal: HeadraceError) -> None:
        """Count a call that was turned away before anything was set aside for it."""
        self._recorder.refusals.note(caller.tenant, caller.key_id, model, refusal.code)

    def settled(self, key_id: str, request_id: RequestId) -> Usage | None:
        """Return what a key's request came to, None if it has not ended lately."""
        return self._recent.find(key_id, request_id)

    def front(self, upstream: Upstream) -> Upstream:
        """Return `upstream` behind every stage."""
        return Pipeline(self._stages, upstream)

    def add_engine(
        self, model: str, time: Callable[[], EngineTime], build: EngineBuild | None = None
    ) -> Callable[[RequestStats], None]:
        """Bill an engine of this process from now on; return what has to hear of its ended requests."""
        return self._recorder.add_engine(model, time, build)

    def admin_routes(self, version: str) -> AdminRoutes:
        """Return the routes of the administration."""
        return admin_routes(self._database, version, None if self._audit is None else self._audit.chain)

    @property
    def auditor(self) -> Auditor | None:
        """Return what keeps the calls of this process, if anything does."""
        return None if self._audit is None else self._audit.writer

    def audit_stats(self) -> AuditStats | None:
        """Return what the audit log has done so far, where there is one."""
        return None if self._audit is None else self._audit.writer.stats()

    def stats(self) -> AdmissionStats:
        """Return what has been decided so far."""
        return self._authority.stats()

    async def look(self) -> None:
        """Connect, bring the schema up to date, read keys and rules. Raises ConfigError or StoreUnavailable."""
        await self._database.open()
        await migrate(self._database)
        if self._audit is not None:
            await self._audit.check()
        await self._watch.look()

    async def open(self) -> None:
        """Do the same, and keep accounts from now on."""
        await self.look()
        await self._authority.open()
        if self._keeps_digests:
            self._admission.use_digests(Digests(await read_digest_key(self._database)))
        self._recorder.start()
        if self._audit is not None:
            self._audit.upkeep.start()

    async def close(self) -> None:
        """Write what is left and disconnect."""
        await self._watch.close()
        await self._authority.close()
        await self._recorder.close()
        if self._audit is not None:
            await self._audit.close()
        await self._database.close()
