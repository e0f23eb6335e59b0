"""Places for KV blocks below the pool: what is where, what is worth keeping, and when loading beats computing."""

from headrace.kv.tiers.hierarchy import LONGEST_WAIT_S, Late, Search, TierHierarchy, TierShape
from headrace.kv.tiers.keys import KeyChain, derive_format, derive_secret
from headrace.kv.tiers.places import Arrived, Learned, Places
from headrace.kv.tiers.recompute_cost import RecomputeCost

__all__ = [
    "LONGEST_WAIT_S",
    "Arrived",
    "KeyChain",
    "Late",
    "Learned",
    "Places",
    "RecomputeCost",
    "Search",
    "TierHierarchy",
    "TierShape",
    "derive_format",
    "derive_secret",
]
