"""Whether two systems differ by more than the choice of examples would make them differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antefix.errors import ConfigError
from antefix.training.metrics import Array, Metric


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two systems, its 95 % interval, and the p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class PairedBootstrap:
    """Resamples the examples with replacement, and computes the difference on each sample (Koehn 2004)."""

    num_resamples: int = 1000
    seed: int = 12345

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise ConfigError(f"num_resamples is {self.num_resamples}; it must be 1 or more.")

    def compare(self, first: Metric, second: Metric) -> Comparison:
        """Compare the second system with the first on the same examples.

        The interval is the middle 95 % of the resampled differences. The p-value is two-sided: how often they lie at
        least as far from the observed difference as that does from none (Efron and Tibshirani 1993, section 16.4),
        plus one in both counts.
        """
        differences = self.differences(first, second)
        observed = second.value - first.value
        low, high = np.percentile(differences, [2.5, 97.5])
        # Counts of answers tie with it often, and a difference of two rounded means may fall short by its last digit.
        # What is no number tells nothing: it counts as extreme, and so the p-value is 1.
        extreme = int((~(np.abs(differences - observed) < abs(observed) * (1 - 1e-9))).sum())
        return Comparison(observed, float(low), float(high), (extreme + 1) / (self.num_resamples + 1))

    def differences(self, first: Metric, second: Metric) -> Array:
        """Return the resampled differences `(resample)`; the draws are those of sacrebleu's paired bootstrap."""
        number = len(first.statistics)
        generator = np.random.default_rng(self.seed)
        counts = np.empty((self.num_resamples, number))
        for row in counts:  # one at a time, as all draws at once would take as much memory again
            row[:] = np.bincount(generator.choice(number, size=number, replace=True), minlength=number)
        return second.figure(counts @ second.statistics) - first.figure(counts @ first.statistics)
