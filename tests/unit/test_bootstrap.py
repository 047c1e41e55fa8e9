"""The paired bootstrap against every resample there is, worked out, and against sacrebleu's own."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from antefix.errors import ConfigError
from antefix.training.bootstrap import PairedBootstrap
from antefix.training.metrics import Metric, _ratio, accuracy, bleu, chrf, macro_f1, perplexity
from tests.unit.test_metrics import ANSWERS, REFERENCES


def test_an_exact_small_case() -> None:
    """Of four examples there are 256 equally likely draws, which say what any number of samples must approach."""
    first, second = accuracy([0, 0, 1, 1], [1, 1, 1, 1]), accuracy([1, 1, 1, 0], [1, 1, 1, 1])
    scores = np.array([1, 1, 0, -1])  # of the differences, example by example
    draws = np.array([scores[list(drawn)].mean() for drawn in itertools.product(range(4), repeat=4)])
    exact = (np.abs(draws - 0.25) >= 0.25).mean()
    found = PairedBootstrap(num_resamples=20_000, seed=0).compare(first, second)
    assert found.difference == 0.25
    assert found.p_value == pytest.approx(exact, abs=0.01)  # a standard error of 0.0035 at 20,000
    assert (found.low, found.high) == tuple(np.percentile(draws, [2.5, 97.5]))


@pytest.mark.parametrize(("number", "gained"), [(10, 1), (100, 4)])
def test_what_both_have_right_does_not_change_the_p_value(number: int, gained: int) -> None:
    """The difference is the same in every draw, up to rounding, and often just twice the observed one."""
    p_values = set()
    for both in range(number - gained + 1):
        wrong = [0] * (number - gained - both)
        first, second = ([start] * gained + [1] * both + wrong for start in (0, 1))
        compared = PairedBootstrap().compare(accuracy(first, [1] * number), accuracy(second, [1] * number))
        p_values.add(compared.p_value)
    assert len(p_values) == 1


def test_draws_one_by_one_are_those_of_all_at_once() -> None:
    number = 301
    losses = np.random.default_rng(1).random((2, number, 2))
    first, second = map(perplexity, losses)
    drawn = np.random.default_rng(3).choice(number, size=(1000, number), replace=True)
    counts = np.stack([np.bincount(row, minlength=number) for row in drawn]).astype(np.float64)
    expected = second.figure(counts @ losses[1]) - first.figure(counts @ losses[0])
    tracemalloc.start()
    assert np.array_equal(PairedBootstrap(num_resamples=1000, seed=3).differences(first, second), expected)
    assert tracemalloc.get_traced_memory()[1] < 1.5 * counts.nbytes
    tracemalloc.stop()


@pytest.mark.parametrize(("ours", "theirs"), [(bleu, BLEU), (chrf, CHRF)])
def test_the_draws_are_those_of_sacrebleu(monkeypatch: pytest.MonkeyPatch, ours, theirs) -> None:
    """Its p-value, which is another, comes out of our differences to the last digit."""
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    other = ["The Phoenix is a pub by the river.", "coffee shop", "Nothing", "Blue Spice serves food by the river."]
    answers, others = ANSWERS * 3, other * 3
    streams = [[texts[n] if n < len(texts) else "" for texts in REFERENCES * 3] for n in range(3)]
    test = PairedTest(
        [("a", answers), ("b", others)], {"m": theirs(references=None)}, streams, test_type="bs", n_samples=200
    )
    _, scores = test()
    result = next(found for name, found in scores.items() if name != "System")[1]
    first, second = ours(answers, _padded(streams)), ours(others, _padded(streams))
    differences = np.abs(PairedBootstrap(200, seed=7).differences(first, second))
    extreme = (differences - differences.mean() > abs(second.value - first.value)).sum()
    assert result.score == pytest.approx(second.value)
    assert result.p_value == (extreme + 1) / 201


def _padded(streams: list[list[str]]) -> list[list[str]]:
    return [list(texts) for texts in zip(*streams, strict=True)]


def test_the_interval_of_a_mean_is_the_one_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(size=(400, 1))
    ones = np.ones_like(values)
    first, second = (Metric(np.hstack([v, ones]), lambda sums: sums[:, 0] / sums[:, 1]) for v in (0 * values, values))
    found = PairedBootstrap(4000).compare(first, second)
    half = 1.96 * values.std() / 20
    # The ends are quantiles of 4,000 draws, good to about 3 % of the half width.
    assert found.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_equal_systems_do_not_differ() -> None:
    same = accuracy([0, 1, 1], [0, 1, 0])
    found = PairedBootstrap(50).compare(same, same)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_loss_that_is_no_number_is_no_difference_found() -> None:
    ones = np.ones((3, 1))
    fine, broken = (Metric(np.hstack([[[a], [1.0], [2.0]], ones]), _ratio) for a in (1.0, np.nan))
    assert PairedBootstrap(50).compare(fine, broken).p_value == 1.0


def test_draws_are_paired_and_seeded() -> None:
    """One system is a constant better than the other, so every paired difference is that constant."""
    losses = np.random.default_rng(0).random((30, 1))
    ones = np.ones((30, 1))
    first, second = (Metric(np.hstack([losses + more, ones]), lambda sums: sums[:, 0] / sums[:, 1]) for more in (0, 1))
    assert PairedBootstrap(100).differences(first, second) == pytest.approx(np.ones(100))
    third = Metric(np.hstack([losses**2, ones]), first.figure)
    a, b, c = (PairedBootstrap(100, seed).differences(first, third) for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_figures_that_are_no_mean_are_recomputed_for_each_sample() -> None:
    losses = np.array([[2.0, 1.0], [0.0, 1.0]])
    doubled = perplexity(losses * [2, 1])
    differences = set(np.round(PairedBootstrap(50).differences(perplexity(losses), doubled), 6))
    assert differences == set(np.round([0.0, np.e**2 - np.e, np.e**4 - np.e**2], 6))
    assert PairedBootstrap(50).differences(macro_f1([0, 1], [0, 0], 2), macro_f1([0, 0], [0, 0], 2)).min() == 0.0


def test_no_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_resamples is 0"):
        PairedBootstrap(0)
