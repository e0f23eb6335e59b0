from __future__ import annotations

from headrace.sched.fairness import FairShares


def test_a_tenant_that_comes_back_starts_one_burst_behind_whatever_it_has_missed() -> None:
    shares = FairShares({}, 100)
    busy, idle = shares.join("busy"), shares.join("idle")
    shares.leave(idle)
    shares.charge(busy, 5000)
    back = shares.join("idle")
    assert back is idle
    assert back.served == 4900
    shares.check([busy, back])


def test_leaving_and_coming_back_does_not_wash_off_what_a_tenant_has_had() -> None:
    shares = FairShares({}, 100)
    greedy, modest = shares.join("greedy"), shares.join("modest")
    shares.charge(greedy, 3000)
    shares.charge(modest, 500)
    shares.leave(greedy)
    assert shares.join("greedy").served == 3000


def test_when_nobody_was_left_the_next_one_starts_level() -> None:
    shares = FairShares({}, 100)
    alone = shares.join("alone")
    shares.charge(alone, 9000)
    shares.leave(alone)
    assert shares.num_active == 0
    assert shares.join("next").served == 8900


def test_weights_divide_what_is_charged_and_settling_takes_back() -> None:
    shares = FairShares({"half": 2.0}, 100)
    account = shares.join("half")
    shares.charge(account, 300)
    shares.charge(account, -100)
    assert account.served == 100


def test_names_that_never_come_back_do_not_pile_up() -> None:
    shares = FairShares({}, 100)
    live = shares.join("stays")
    for number in range(5000):
        shares.leave(shares.join(f"passing-{number}"))
    assert len(shares._accounts) <= 1024
    shares.check([live])
