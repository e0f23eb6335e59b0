"""Fair shares: how much each tenant has had, in tokens really computed, so that the neediest goes first.

Owns: one account per tenant. Called by the scheduler and the waiting queue, on the engine thread.
An account counts tokens divided by the tenant's weight. A sequence is charged once, at admission, with what it is
expected to cost: prompt tokens that are not cached and the learned share of its `max_tokens`; at its end the charge
becomes what was computed. Tokens computed again after a preemption are nobody's fault and charged to nobody.
A tenant may be ahead of the neediest waiting one by `burst` tokens: so far deadlines and cached prefixes decide who is
next, beyond it need alone does. One that comes back from idling starts at most `burst` behind the others: it is served
first for a while, but has saved nothing up.
Source: the virtual token counter, Sheng et al. 2024 (OSDI), with a bound on both sides and settled charges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_MOST_KEPT = 1024  # accounts, before idle ones are dropped


class Account:
    """What one tenant has had. Written by `FairShares`."""

    __slots__ = ("num_live", "served", "tenant", "weight")

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.served = 0.0  # tokens / weight, lifted when an idle tenant comes back
        self.num_live = 0  # sequences that have not finished


class FairShares:
    """The accounts of all tenants. Cost: O(active tenants) when a tenant comes back, O(1) otherwise.

    weights  shares of those tenants that do not have a share of 1
    burst    tokens that one may be ahead of another of weight 1; at least 1
    """

    def __init__(self, weights: Mapping[str, float], burst: int) -> None:
        self.burst = burst
        self._weights = dict(weights)
        self._accounts: dict[str, Account] = {}
        self._floor = 0.0  # only grows; nobody who comes back starts more than `burst` below it
        self.num_active = 0  # tenants with live sequences

    def join(self, tenant: str) -> Account:
        """Count one more live sequence of a tenant and return its account."""
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= _MOST_KEPT:
                self._forget_idle()
            account = self._accounts[tenant] = Account(tenant, self._weights.get(tenant, 1.0))
        if not account.num_live:
            self._raise_floor()
            account.served = max(account.served, self._floor - self.burst)
            self.num_active += 1
        account.num_live += 1
        return account

    def leave(self, account: Account) -> None:
        """Count one live sequence less."""
        account.num_live -= 1
        if not account.num_live:
            self.num_active -= 1
            if not self.num_active:  # nobody is left to be compared with: the next one starts level
                self._floor = max(self._floor, account.served)

    def charge(self, account: Account, num_tokens: float) -> None:
        """Add tokens to what a tenant has had; negative ones settle a charge that was too high."""
        account.served += num_tokens / account.weight

    def _raise_floor(self) -> None:
        active = [account.served for account in self._accounts.values() if account.num_live]
        self._floor = max(self._floor, min(active, default=self._floor))

    def _forget_idle(self) -> None:
        """Drop the idle accounts that owe least, so that names which never come back do not pile up."""
        idle = sorted((a for a in self._accounts.values() if not a.num_live), key=lambda account: account.served)
        for account in idle[: len(idle) // 2 + 1]:
            del self._accounts[account.tenant]

    def check(self, live: Iterable[Account]) -> None:
        """Raise AssertionError unless the accounts know how many sequences live."""
        counts: dict[str, int] = {}
        for account in live:
            counts[account.tenant] = counts.get(account.tenant, 0) + 1
            assert self._accounts.get(account.tenant) is account, "a live sequence has an account that is not kept"
        assert {a.tenant: a.num_live for a in self._accounts.values() if a.num_live} == counts, "accounts miscount"
        assert self.num_active == len(counts), "the active tenants are miscounted"
