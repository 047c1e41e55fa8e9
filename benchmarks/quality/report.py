"""The page of the study, written from the JSON of its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.quality import prose
from benchmarks.quality.documents import AT_ONCE, BY_DEFAULT, LESSONS, PLAN, UNSEEN
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.plan import GROUPS, finals
from benchmarks.quality.plots import above, factor, plot_curves, plot_documents, plot_examples, plot_parameters
from benchmarks.quality.pretraining import BASE

TITLES = {"phonemes": "British phonemes", "family": "Family friendly", "e2e": "E2E"}
METRICS = {
    "phonemes": ("exact_match", "loss"),
    "family": ("accuracy", "loss"),
    "e2e": ("bleu", "chrf", "loss"),
}
"""What is shown of each task, the headline first."""
NAMES = {"exact_match": "exact match", "accuracy": "accuracy", "bleu": "BLEU", "chrf": "chrF", "loss": "loss"}
NOT_MEASURED = "Not measured yet."
_STUDIED = (("", LESSONS), (", read at once", AT_ONCE), (" by default", BY_DEFAULT))
"""What the table of documents says of their lessons."""


@dataclass(frozen=True)
class Row:
    """A contender on a task: its best loss on validation data, and its figures on test data, one of each seed.

    `rates` are the learning rates that it was tried at.
    """

    name: str
    group: str
    num_examples: int | None
    learning_rate: float
    rates: Sequence[float]
    validation_loss: float
    runs: Sequence[dict[str, Any]]

    @property
    def parameters(self) -> int:
        """How many numbers it trains."""
        return int(self.runs[0]["parameters"])

    def values(self, metric: str) -> list[float]:
        """Return a metric of every seed."""
        return [run["scores"][metric] for run in self.runs]

    def shown(self, metric: str) -> str:
        """Return mean and spread of a metric as the page shows them; nothing of what was not measured."""
        return spread(self.values(metric), factor(metric)) if self.runs else ""


def write_page(page: Path, ledger: Ledger) -> None:
    """Write the page and its plots of what was measured, and say of the rest that it was not."""
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    rows = {task: rows_of(task, ledger) for task in TITLES}
    parts = [prose.INTRODUCTION, _environment(ledger), "## In short", prose.IN_SHORT, _in_short(rows)]
    for task, title in TITLES.items():
        parts += [f"## {title}", prose.TASKS[task], *_task(task, rows[task], images)]
    for group, title, text in (
        ("settings", "Settings of a prefix", prose.SETTINGS),
        ("variants", "What the literature offers", prose.VARIANTS),
    ):
        parts += [f"## {title}", text, _across(rows, group)]
    parts += ["## Beside PEFT's prefix", prose.TWINS, _paired(rows, "twins")]
    parts += [prose.LONGER, _paired(rows, "longer")]
    parts += ["## Few examples", prose.FEW]
    for task in TITLES:
        parts += _few(task, [row for row in rows[task] if row.group == "few"], images)
    parts += ["## Forgetting", prose.FORGETTING, _forgetting(rows["e2e"])]
    parts += ["## Distilled documents", prose.DOCUMENTS, *_documents(ledger, images)]
    page.write_text("\n\n".join(parts) + "\n")


def _in_short(rows: dict[str, list[Row]]) -> str:
    """Show the headline of every peer on all tasks."""
    by = {(row.name, task): row for task in TITLES for row in rows[task] if row.group == "peers"}
    names = dict.fromkeys(name for name, _ in by)
    head = ["", *(f"{title}: {NAMES[METRICS[task][0]]}" for task, title in TITLES.items())]
    lines = [
        [name, *(by[name, task].shown(METRICS[task][0]) if (name, task) in by else "" for task in TITLES)]
        for name in names
    ]
    return table(head, lines)


def _task(task: str, rows: Sequence[Row], images: Path) -> list[str]:
    if not rows:
        return [NOT_MEASURED]
    curves, parameters = (f"quality-{task}-{what}.png" for what in ("curves", "parameters"))
    plot_curves(rows, images / curves)
    plot_parameters(rows, METRICS[task][0], images / parameters)
    return [
        _table(task, [row for row in rows if row.group == "peers"]),
        f"![{TITLES[task]}: training loss by step](images/{curves})",
        f"![{TITLES[task]}: quality by number of trained parameters](images/{parameters})",
    ]


def rows_of(task: str, ledger: Ledger) -> list[Row]:
    """Return a task's contenders in the order of the plan, of the groups that were run to their end."""
    found: list[Row] = []
    for group in GROUPS:
        try:
            found += _rows_of_group(task, group, ledger)
        except KeyError:
            continue
    return found


def _rows_of_group(task: str, group: str, ledger: Ledger) -> list[Row]:
    found = []
    for contender in GROUPS[group](task, ledger):
        runs = finals(group, contender, task, ledger)
        loss, method = contender.best(task, ledger)
        for number in dict.fromkeys(run.num_examples for run in runs) or (None,):
            figures = [ledger.figures(run) for run in runs if run.num_examples == number]
            found.append(Row(contender.name, group, number, method.learning_rate, contender.rates, loss, figures))
    return found


def spread(values: Sequence[float], scale: float = 1, digits: int | None = None) -> str:
    """Return mean and standard deviation, to three digits behind the point where it is a small number."""
    of = [value * scale for value in values]
    if digits is None:
        digits = 1 if mean(of) > 10 else 3
    return f"{mean(of):.{digits}f}" + (f" ± {stdev(of):.{digits}f}" if len(of) > 1 else "")


def _environment(ledger: Ledger) -> str:
    of, base = ledger.lines[-1]["environment"], json.loads((BASE / "pretraining.json").read_text())
    versions = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    commits = [line["environment"]["commit"] for line in ledger.lines]
    dirty = sum(commit.endswith("-dirty") for commit in commits)
    return (
        f"Measured on {of['processor']}, {of['dtype']}; {versions}; Python {of['python']}. The {len(commits)} runs "
        f"were made at commits from {commits[0].removesuffix('-dirty')} to {commits[-1]}; {dirty} are marked as made "
        "with uncommitted changes: the file of these figures, which grew until the last of them. The base has "
        f"{base['parameters'] / 1e6:.2f} million parameters and took {base['seconds'] / 60:.0f} minutes on "
        f"{base['threads']} thread{'s' if base['threads'] > 1 else ''}."
    )


def _table(task: str, rows: Sequence[Row]) -> str:
    metrics = METRICS[task]
    head = ["", "parameters", "learning rate", *(NAMES[metric] for metric in metrics)]
    lines = [[row.name, f"{row.parameters:,}", _rate(row), *map(row.shown, metrics)] for row in rows]
    return table(head, lines)


def _rate(row: Row) -> str:
    """Show the learning rate, and between which it was chosen."""
    tried = f" ({min(row.rates):g}-{max(row.rates):g})" if len(row.rates) > 1 else ""
    return f"{row.learning_rate:g}{tried}" if row.learning_rate else ""


def _across(rows: dict[str, list[Row]], group: str) -> str:
    """Show one group of contenders on all tasks that have it, below the default prefix.

    Of variants the loss on validation data, and test data's headline of those that went so far.
    """
    tasks = [task for task in TITLES if any(row.group == group for row in rows[task])]
    if not tasks:
        return NOT_MEASURED
    by = {(task, row.name): row for task in tasks for row in rows[task] if row.group in ("peers", group)}
    names = dict.fromkeys(row.name for task in tasks for row in rows[task] if row.group == group)
    head = [""]
    for task in tasks:
        head += [f"{TITLES[task]}: {NAMES[METRICS[task][0]]}", "validation loss" if group == "variants" else "loss"]
    lines = []
    for name in ("prefix", *names):
        cells = [name]
        for task in tasks:
            row = by.get((task, name))
            if row is None:
                cells += ["", ""]
            else:
                loss = f"{row.validation_loss:.3f}" if group == "variants" else row.shown("loss")
                cells += [row.shown(METRICS[task][0]), loss]
        lines.append(cells)
    return table(head, lines)


def _paired(rows: dict[str, list[Row]], group: str) -> str:
    """Show the prefix beside each of PEFT's, and the differences of the same seeds."""
    by = {(task, row.name): row for task in TITLES for row in rows[task] if row.group == group}
    others = [name for name in dict.fromkeys(name for _, name in by) if name != "prefix"]
    lines = []
    for task, title in ((task, title) for task, title in TITLES.items() if (task, "prefix") in by):
        ours = by[task, "prefix"]
        for metric in METRICS[task]:
            cells = [f"{title}: {NAMES[metric]}", ours.shown(metric)]
            for name in others:
                theirs = by.get((task, name))
                cells += [theirs.shown(metric), _difference(ours, theirs, metric)] if theirs else ["", ""]
            lines.append(cells)
    head = ["", "prefix", *(cell for name in others for cell in (name, "difference"))]
    return table(head, lines) if lines else NOT_MEASURED


def _difference(ours: Row, theirs: Row, metric: str) -> str:
    pairs = zip(ours.values(metric), theirs.values(metric), strict=True)
    differences = [(our - their) * factor(metric) for our, their in pairs]
    digits = 3 if metric == "loss" else 1
    return f"{mean(differences):+.{digits}f} ± {stdev(differences):.{digits}f}"


def _few(task: str, rows: Sequence[Row], images: Path) -> list[str]:
    if not rows:
        return [f"{TITLES[task]}: {NOT_MEASURED[0].lower()}{NOT_MEASURED[1:]}"]
    picture = f"quality-{task}-examples.png"
    plot_examples(rows, METRICS[task][0], images / picture)
    numbers = sorted({row.num_examples for row in rows if row.num_examples})
    by = {(row.name, row.num_examples): row for row in rows}
    names = dict.fromkeys(row.name for row in rows)
    tables = [
        table(
            [f"{TITLES[task]}: {NAMES[metric]}", *map(str, numbers)],
            [[name, *(by[name, number].shown(metric) for number in numbers)] for name in names],
        )
        for metric in (METRICS[task][0], "loss")
    ]
    return [
        *tables,
        f"![{TITLES[task]}: quality by number of examples](images/{picture})",
    ]


def _forgetting(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row.group in ("peers", "settings")]
    if not shown:
        return NOT_MEASURED
    lines = [[row.name, spread([run["general_loss"] for run in row.runs])] for row in shown]
    return table(["trained on E2E", "loss on WikiText-2"], lines)


def _documents(ledger: Ledger, images: Path) -> list[str]:
    documents = [{**asdict(one), "report": ledger.figures(one)} for one in PLAN if one in ledger]
    if not documents:
        return [NOT_MEASURED]
    alike = [one for one in documents if one["lessons"] == LESSONS and one["seed"] not in UNSEEN]
    plot_documents(alike, images / "quality-documents.png")
    picture = "![Loss on questions, by document tokens per token of the prefix](images/quality-documents.png)"
    return [_document_table(documents), picture]


def _document_table(documents: Sequence[dict[str, Any]]) -> str:
    lines = []
    kinds = dict.fromkeys((one["ratio"], _objective(one)) for one in documents)
    for ratio, objective in kinds:
        those = [one for one in documents if (one["ratio"], _objective(one)) == (ratio, objective)]
        found = [one["report"] for one in those]
        tokens = " to ".join(sorted({str(one["prefix"]["tokens"]) for one in found}, key=int))
        losses = [spread([one["questions"][of]["loss"] for one in found]) for of in ("base", "document", "prefix")]
        kl = spread([one["questions"]["prefix"]["kl"] for one in found])
        lines.append([f"1/{ratio}", objective, tokens, *losses, f"{spread(list(map(above, those)), digits=1)} %", kl])
    head = ["tokens kept", "objective", "tokens", "bare base", "document", "prefix", "above document", "divergence"]
    return table(head, lines)


def _objective(document: dict[str, Any]) -> str:
    studied = next(text for text, lessons in _STUDIED if document["lessons"] == lessons)
    return f"{document['objective']}{studied}{', unseen' if document['seed'] in UNSEEN else ''}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
