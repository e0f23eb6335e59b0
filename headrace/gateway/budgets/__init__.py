"""For how much money: budgets, prices, and what a request came to."""

from headrace.gateway.budgets.price import PriceOf, TokenCounts, TokenPrice
from headrace.gateway.budgets.rules import BudgetRule
from headrace.gateway.budgets.settlement import Settlement

__all__ = ["BudgetRule", "PriceOf", "Settlement", "TokenCounts", "TokenPrice"]
