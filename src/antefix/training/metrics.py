"""Metrics of answers and labels, computed from sums over examples, so that any sample of them can be scored again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antefix.errors import ConfigError

Array = NDArray[np.float64]
References = Sequence[Sequence[str]]
"""For each answer, the texts that count as right."""

ROUGE = ("rouge1", "rouge2", "rougeL")
ANSWER_METRICS = ("exact_match", "bleu", "chrf", *ROUGE)
LABEL_METRICS = ("loss", "accuracy", "macro_f1")

_SHOWN = {
    "loss": ("loss (nats)", ".4f"),
    "perplexity": ("perplexity", ".2f"),
    "exact_match": ("exact match", ".1%"),
    "bleu": ("BLEU", ".2f"),
    "chrf": ("chrF", ".2f"),
    "rouge1": ("ROUGE-1", ".4f"),
    "rouge2": ("ROUGE-2", ".4f"),
    "rougeL": ("ROUGE-L", ".4f"),
    "accuracy": ("accuracy", ".1%"),
    "macro_f1": ("macro F1", ".4f"),
}


def title(metric: str) -> str:
    """Return the name of a metric as people write it."""
    return _SHOWN[metric][0]


def show(metric: str, value: float, signed: bool = False) -> str:
    """Return a metric's value, or a difference of two, with as many digits as are worth reading."""
    return format(value, ("+" if signed else "") + _SHOWN[metric][1])


@dataclass(frozen=True)
class Metric:
    """A metric as statistics `(example, statistic)` and the figure `(sample)` of their sums `(sample, statistic)`.

    `signature` says how the metric was computed, if its library has a way to say so.
    """

    statistics: Array
    figure: Callable[[Array], Array]
    signature: str = ""

    @property
    def value(self) -> float:
        """The figure of all examples."""
        return float(self.figure(self.statistics.sum(axis=0, keepdims=True))[0])


def loss(losses: Array) -> Metric:
    """Return the loss per token, in nats, from `(example, 2)`: each example's summed loss and number of tokens."""
    return Metric(losses, _ratio)


def perplexity(losses: Array) -> Metric:
    """Return the exponential of the loss per token, from the same statistics."""
    return Metric(losses, lambda sums: np.exp(_ratio(sums)))


def exact_match(answers: Sequence[str], references: References) -> Metric:
    """Return the share of answers that are one of their references, white space at the ends aside."""
    right = [
        answer.strip() in {text.strip() for text in texts} for answer, texts in zip(answers, references, strict=True)
    ]
    return _mean(right)


def bleu(answers: Sequence[str], references: References) -> Metric:
    """Return corpus BLEU, 0 to 100, as sacrebleu computes it by default (Papineni et al. 2002; Post 2018)."""
    return _sacrebleu(_import_sacrebleu().BLEU(), answers, references)


def chrf(answers: Sequence[str], references: References) -> Metric:
    """Return corpus chrF, 0 to 100, as sacrebleu computes it by default (Popović 2015)."""
    return _sacrebleu(_import_sacrebleu().CHRF(), answers, references)


def rouge(name: str, answers: Sequence[str], references: References) -> Metric:
    """Return the mean F measure, 0 to 1, of 'rouge1', 'rouge2' or 'rougeL' with stemming (Lin 2004).

    If there are several references, the best F measure counts.
    """
    scorer = _import_rouge()([name], use_stemmer=True)
    pairs = zip(answers, references, strict=True)
    return _mean([float(scorer.score_multi(texts, answer)[name].fmeasure) for answer, texts in pairs])


def answer_metric(name: str, answers: Sequence[str], references: References) -> Metric:
    """Return one of `ANSWER_METRICS` by its name."""
    if name in ROUGE:
        return rouge(name, answers, references)
    return {"exact_match": exact_match, "bleu": bleu, "chrf": chrf}[name](answers, references)


def check_metrics(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise `ConfigError` for a metric that a task does not have, or one whose library is not installed."""
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no metric '{name}' for this task; it has {', '.join(map(repr, known))}.")
    if {"bleu", "chrf"} & set(names):
        _import_sacrebleu()
    if set(ROUGE) & set(names):
        _import_rouge()


def accuracy(chosen: Sequence[int], right: Sequence[int]) -> Metric:
    """Return the share of labels that are right."""
    return _mean([ours == theirs for ours, theirs in zip(chosen, right, strict=True)])


def macro_f1(chosen: Sequence[int], right: Sequence[int], num_labels: int) -> Metric:
    """Return the mean F1 of the labels that occur, chosen or right; 0 for one that is never chosen rightly."""
    labels = np.eye(num_labels)
    ours, theirs = labels[list(chosen)], labels[list(right)]

    def figure(sums: Array) -> Array:
        hits, occurrences = np.split(sums, 2, axis=-1)
        f1 = 2 * hits / np.maximum(occurrences, 1)
        return np.asarray(f1.sum(axis=-1) / np.maximum((occurrences > 0).sum(axis=-1), 1))

    return Metric(np.concatenate([ours * theirs, ours + theirs], axis=1), figure)


def _mean(scores: Sequence[float] | Sequence[bool]) -> Metric:
    return Metric(np.stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))], axis=1), _ratio)


def _ratio(sums: Array) -> Array:
    return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))


def _sacrebleu(metric: Any, answers: Sequence[str], references: References) -> Metric:
    """Take the statistics that sacrebleu's own significance tests resample; they have no public name."""
    most = max(map(len, references))
    streams = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
    statistics = np.array(metric._extract_corpus_statistics(answers, streams), dtype=np.float64)

    def figure(sums: Array) -> Array:
        return np.array([metric._compute_score_from_stats(list(row)).score for row in sums])

    return Metric(statistics, figure, str(metric.get_signature()))


def _import_rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError('ROUGE needs rouge_score: pip install "antefix[eval]".') from error
    return RougeScorer


def _import_sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise ConfigError('BLEU and chrF need sacrebleu: pip install "antefix[eval]".') from error
    return metrics
