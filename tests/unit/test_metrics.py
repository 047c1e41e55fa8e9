"""Metrics against values worked by hand and against the libraries that define them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, f1_score

from antefix.errors import ConfigError
from antefix.training.metrics import (
    ANSWER_METRICS,
    accuracy,
    answer_metric,
    bleu,
    check_metrics,
    chrf,
    exact_match,
    loss,
    macro_f1,
    perplexity,
    rouge,
    show,
    title,
)

ANSWERS = ["The Phoenix is a cheap pub.", "a coffee shop", "", "Blue Spice serves food by the river."]
REFERENCES = [
    ["The Phoenix is a cheap pub by the river.", "A cheap pub is The Phoenix."],
    ["There is a coffee shop.", "a coffee shop", "It is a coffee shop in town."],
    ["Nothing to say."],
    ["By the river, Blue Spice serves cheap food.", "Blue Spice is by the river and serving foods."],
]


def test_loss_is_of_tokens_and_not_of_examples() -> None:
    losses = np.array([[6.0, 2.0], [1.0, 1.0], [0.0, 4.0]])
    assert loss(losses).value == 1.0
    assert perplexity(losses).value == pytest.approx(np.e)


def test_any_reference_matches() -> None:
    assert exact_match([" a coffee shop\n", "the", "No"], [["x", "a coffee shop"], ["The"], ["no "]]).value == 1 / 3


def test_bleu_and_chrf_are_sacrebleus_with_any_number_of_references() -> None:
    streams = [[texts[n] if n < len(texts) else None for texts in REFERENCES] for n in range(3)]
    for ours, theirs in ((bleu, BLEU()), (chrf, CHRF())):
        found = ours(ANSWERS, REFERENCES)
        assert found.value == pytest.approx(theirs.corpus_score(ANSWERS, streams).score, abs=1e-9)
        assert found.signature == str(theirs.get_signature())
        assert 0 < found.value < ours(["one two three four five"], [["one two three four five"]]).value <= 100.0001


def test_samples_are_scored_as_the_corpora_they_are() -> None:
    drawn = [3, 0, 0, 1]
    counts = np.bincount(drawn, minlength=4)[None].astype(float)
    for name in ANSWER_METRICS:
        whole = answer_metric(name, ANSWERS, REFERENCES)
        sample = answer_metric(name, [ANSWERS[n] for n in drawn], [REFERENCES[n] for n in drawn])
        assert whole.figure(counts @ whole.statistics)[0] == pytest.approx(sample.value)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_takes_the_best_reference(name: str) -> None:
    scorer = RougeScorer([name], use_stemmer=True)
    best = [
        max(scorer.score(reference, answer)[name].fmeasure for reference in texts)
        for answer, texts in zip(ANSWERS, REFERENCES, strict=True)
    ]
    assert rouge(name, ANSWERS, REFERENCES).value == pytest.approx(np.mean(best))


def test_rouge_by_hand() -> None:
    # 2 of 3 words and 2 of 4 are shared: F = 2 * (2/3) * (2/4) / (2/3 + 2/4); one pair of words of 2 and of 3.
    answers, references = ["red blue green"], [["red blue black white"]]
    assert rouge("rouge1", answers, references).value == pytest.approx(4 / 7)
    assert rouge("rouge2", answers, references).value == pytest.approx(2 / 5)
    assert rouge("rougeL", answers, references).value == pytest.approx(4 / 7)
    assert rouge("rouge2", ["red dogs"], [["red dog"]]).value == 1.0, "stems are compared"


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(seed: int) -> None:
    """With four labels and few examples, some labels are never right, never chosen, or neither."""
    chosen, right = np.random.default_rng(seed).integers(0, 4, (2, 6 + 10 * (seed > 2))).tolist()
    assert accuracy(chosen, right).value == pytest.approx(accuracy_score(right, chosen))
    assert macro_f1(chosen, right, 4).value == pytest.approx(f1_score(right, chosen, average="macro"))
    drawn = np.random.default_rng(seed).integers(0, len(right), 8)
    metric = macro_f1(chosen, right, 4)
    sample = np.bincount(drawn, minlength=len(right))[None] @ metric.statistics
    theirs = f1_score(np.array(right)[drawn], np.array(chosen)[drawn], average="macro")
    assert metric.figure(sample)[0] == pytest.approx(theirs)


def test_macro_f1_by_hand() -> None:
    # Label 0: F = 2*1/(1+2) = 2/3; label 1: 2*1/(2+1) = 2/3; label 2 does not occur.
    assert macro_f1([0, 1, 1], [0, 0, 1], 3).value == pytest.approx(2 / 3)


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no metric 'blue' for this task; it has 'loss', 'bleu'"):
        check_metrics(["loss", "blue"], ["loss", "bleu"])
    for module in ("sacrebleu", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, module, None)
    check_metrics(["loss", "exact_match"], (*ANSWER_METRICS, "loss"))
    for name in ("bleu", "chrf", "rouge2"):
        with pytest.raises(ConfigError, match=r'pip install "antefix\[eval\]"'):
            check_metrics([name], ANSWER_METRICS)


def test_figures_as_they_are_read() -> None:
    assert (title("rougeL"), show("rougeL", 0.51234), show("bleu", 1.0, signed=True)) == ("ROUGE-L", "0.5123", "+1.00")
