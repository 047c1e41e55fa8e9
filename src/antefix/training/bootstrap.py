"""Whether two systems differ by more than the choice of examples would make them differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antefix.training.metrics import Array, Metric


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two systems, its 95 % interval, and the p-value of there being none."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(first: Metric, second: Metric, num_resamples: int = 1000, seed: int = 12345) -> Comparison:
    """Compare the second system with the first on the same examples (Koehn 2004).

    The interval is the middle 95 % of the resampled differences. The p-value is two-sided: how often they lie at least
    as far from the observed difference as that does from none (Efron and Tibshirani 1993, section 16.4), plus one in
    both counts.
    """
    differences = resampled_differences(first, second, num_resamples, seed)
    observed = second.value - first.value
    low, high = np.percentile(differences, [2.5, 97.5])
    extreme = int((np.abs(differences - observed) >= abs(observed)).sum())
    return Comparison(observed, float(low), float(high), (extreme + 1) / (num_resamples + 1))


def resampled_differences(first: Metric, second: Metric, num_resamples: int, seed: int) -> Array:
    """Return the differences of a metric on examples drawn anew, with replacement, `(resample)`.

    They are the draws that sacrebleu's paired bootstrap makes at the same seed.
    """
    num_examples = len(first.statistics)
    drawn = np.random.default_rng(seed).choice(num_examples, size=(num_resamples, num_examples), replace=True)
    counts = np.stack([np.bincount(row, minlength=num_examples) for row in drawn]).astype(np.float64)
    return second.figure(counts @ second.statistics) - first.figure(counts @ first.statistics)
