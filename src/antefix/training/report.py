"""What an evaluation found, as tables, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from antefix.storage import write_together
from antefix.training.evaluation import Evaluation
from antefix.training.metrics import show, title
from antefix.training.plain_json import as_json

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A heading and rows, as text."""


def scores(evaluation: Evaluation) -> Table:
    """Return one row per metric and one column per system."""
    systems = list(evaluation.measured.values())
    rows = [
        (title(name), *(show(name, system.metrics[name].value) for system in systems)) for name in systems[0].metrics
    ]
    return ("metric", *evaluation.measured), rows


def differences(evaluation: Evaluation) -> Table:
    """Return one row for each metric of each system that was compared with the first."""
    first = next(iter(evaluation.measured))
    rows = [
        (
            system,
            title(name),
            show(name, found.difference, signed=True),
            f"{show(name, found.low, signed=True)} to {show(name, found.high, signed=True)}",
            f"{found.p_value:.3f}",
        )
        for system, metrics in evaluation.comparisons.items()
        for name, found in metrics.items()
    ]
    return ("system", "metric", f"difference to {first}", "95 % interval", "p"), rows


def write_report(evaluation: Evaluation, folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    """Write `evaluation.json` with `settings`, `evaluation.md` and `answers.jsonl` to a folder; return their paths."""
    answers = [
        {
            "prompt": prompt,
            "references": references,
            "answers": {name: system.outputs[number] for name, system in evaluation.measured.items() if system.outputs},
        }
        for number, (prompt, references) in enumerate(zip(evaluation.prompts, evaluation.references, strict=True))
    ]
    contents = {
        "evaluation.json": as_json(as_dict(evaluation, settings)),
        "evaluation.md": as_markdown(evaluation).encode(errors="backslashreplace"),
        "answers.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers).encode(),
    }
    write_together({folder / name: content for name, content in contents.items()})
    return [folder / name for name in contents]


def as_dict(evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures and comparisons as plain data."""
    signatures = {
        name: metric.signature
        for system in evaluation.measured.values()
        for name, metric in system.metrics.items()
        if metric.signature
    }
    return {
        "settings": dict(settings),
        "num_examples": evaluation.num_examples,
        "num_prompts": len(set(evaluation.prompts)),
        "systems": {
            name: {metric: found.value for metric, found in system.metrics.items()}
            for name, system in evaluation.measured.items()
        },
        "comparisons": {
            name: {metric: asdict(found) for metric, found in metrics.items()}
            for name, metrics in evaluation.comparisons.items()
        },
        "signatures": signatures,
    }


def as_markdown(evaluation: Evaluation) -> str:
    """Return the tables of scores and differences in Markdown."""
    tables = [scores(evaluation)] + ([differences(evaluation)] if evaluation.comparisons else [])
    return f"{summary(evaluation)}\n\n" + "\n".join(_markdown(*table) for table in tables)


def summary(evaluation: Evaluation) -> str:
    """Return a sentence that says how much was evaluated."""
    return f"{_count(evaluation.num_examples, 'example')}, {_count(len(set(evaluation.prompts)), 'distinct prompt')}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
