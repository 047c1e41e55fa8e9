"""The plots of the study, in colours that colour-blind readers tell apart and with marks that print keeps apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLES: dict[str, dict[str, Any]] = {
    "prefix": {"color": "#0072b2", "marker": "o"},
    "PEFT prefix": {"color": "#d55e00", "marker": "s"},
    "PEFT prefix, MLP": {"color": "#e69f00", "marker": "v"},
    "LoRA, equal": {"color": "#009e73", "marker": "^"},
    "LoRA, r=8 everywhere": {"color": "#56b4e9", "marker": "D"},
    "full fine-tuning": {"color": "#cc79a7", "marker": "P"},
}
"""Okabe & Ito (2008)."""
LABELS = {"exact_match": "exact match, %", "accuracy": "accuracy, %", "bleu": "BLEU"}


def plot_curves(rows: Sequence[Any], path: Path) -> None:
    """Draw the training loss of every peer, the mean of its seeds, by the share of its steps."""
    axes = _axes("share of training, %", "training loss")
    for row in rows:
        if row.group == "peers" and row.name in STYLES:
            curve = [mean(values) for values in zip(*(run["curve"] for run in row.runs), strict=True)]
            axes.plot([10 * (number + 1) for number in range(len(curve))], curve, label=row.name, **STYLES[row.name])
    _save(axes, path)


def plot_parameters(rows: Sequence[Any], metric: str, path: Path) -> None:
    """Draw quality by the number of trained parameters: the peers, and prefixes of other lengths as a line."""
    axes = _axes("trained parameters", LABELS[metric])
    axes.set_xscale("log")
    lengths = [row for row in rows if row.name.startswith("length") or (row.name, row.group) == ("prefix", "peers")]
    lengths.sort(key=lambda row: row.parameters)
    axes.plot(*_means(lengths, metric), color=STYLES["prefix"]["color"], linestyle="--", marker=".")
    for row in rows:
        if row.group == "peers" and row.name in STYLES:
            (x,), (y,) = _means([row], metric)
            values = [value * factor(metric) for value in row.values(metric)]
            bars = [[y - min(values)], [max(values) - y]]
            axes.errorbar([x], [y], bars, label=row.name, linestyle="", **STYLES[row.name])
    _save(axes, path)


def plot_examples(rows: Sequence[Any], metric: str, path: Path) -> None:
    """Draw quality by the number of examples trained on, with the spread of the seeds."""
    axes = _axes("examples", LABELS[metric])
    axes.set_xscale("log")
    numbers = sorted({row.num_examples for row in rows})
    axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
    axes.minorticks_off()
    for name in dict.fromkeys(row.name for row in rows):
        of = sorted((row for row in rows if row.name == name), key=lambda row: row.num_examples)
        values = [[value * factor(metric) for value in row.values(metric)] for row in of]
        axes.plot([row.num_examples for row in of], [mean(part) for part in values], label=name, **STYLES[name])
        low, high = ([end(part) for part in values] for end in (min, max))
        axes.fill_between([row.num_examples for row in of], low, high, color=STYLES[name]["color"], alpha=0.15)
    _save(axes, path)


def plot_documents(documents: Sequence[Any], path: Path) -> None:
    """Draw how far the loss lies above that of the document in context, by how many of its tokens one stands for."""
    axes = _axes("tokens of the document to one of the prefix", "loss on questions above the document's, %")
    axes.set_xscale("log")
    ratios = sorted({one["ratio"] for one in documents})
    axes.set_xticks(ratios, [str(ratio) for ratio in ratios])
    axes.minorticks_off()
    for objective, style in (("kl", STYLES["prefix"]), ("next-token", STYLES["PEFT prefix"])):
        found = {
            ratio: [above(one) for one in documents if (one["ratio"], one["objective"]) == (ratio, objective)]
            for ratio in ratios
        }
        found = {ratio: values for ratio, values in found.items() if values}
        means = [mean(values) for values in found.values()]
        spread = [[mean(v) - min(v) for v in found.values()], [max(v) - mean(v) for v in found.values()]]
        axes.errorbar(list(found), means, spread, label=f"trained by {objective}", **style)
    axes.axhline(0, color="#009e73", linestyle="--", label="document in context")
    _save(axes, path)


def above(document: Any) -> float:
    """Return by how many per cent a distilled prefix's loss on questions exceeds that of the document in context."""
    losses = document["report"]["questions"]
    return 100 * (float(losses["prefix"]["loss"]) / float(losses["document"]["loss"]) - 1)


def _means(rows: Sequence[Any], metric: str) -> tuple[list[int], list[float]]:
    return [row.parameters for row in rows], [mean(row.values(metric)) * factor(metric) for row in rows]


def factor(metric: str) -> float:
    """Return what a metric is multiplied by where it is shown: shares are shown as per cent."""
    return 100 if metric in ("exact_match", "accuracy") else 1


def _axes(x: str, y: str) -> Axes:
    axes = Figure(figsize=(6.4, 3.8), layout="constrained").add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _save(axes: Axes, path: Path) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
