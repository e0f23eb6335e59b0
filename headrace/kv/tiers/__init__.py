"""Places for KV blocks below the pool: what is where, what is worth keeping, and when loading beats computing."""

from headrace.kv.tiers.hierarchy import Search, TierHierarchy, TierShape
from headrace.kv.tiers.keys import KeyChain, derive_format, derive_secret
from headrace.kv.tiers.places import Arrived, Learned, Places
from headrace.kv.tiers.prefill_cost import PrefillCost

__all__ = [
    "Arrived",
    "KeyChain",
    "Learned",
    "Places",
    "PrefillCost",
    "Search",
    "TierHierarchy",
    "TierShape",
    "derive_format",
    "derive_secret",
]
