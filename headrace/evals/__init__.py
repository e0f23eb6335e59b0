"""Quality of a configuration against its base model: KL divergence, perplexity, same-top-token rate."""

from headrace.evals.compare import Comparison, Interval
from headrace.evals.quality import Scorer, compare_scorers, default_text

__all__ = ["Comparison", "Interval", "Scorer", "compare_scorers", "default_text"]
