"""Quality of a configuration against its base model: KL divergence, perplexity, same-top-token rate."""

from headrace.evals.compare import LEAST_BLOCKS, Comparison, Interval
from headrace.evals.quality import Scorer, compare_scorers, default_text

__all__ = ["LEAST_BLOCKS", "Comparison", "Interval", "Scorer", "compare_scorers", "default_text"]
