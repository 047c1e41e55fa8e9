"""Study how good prefixes are: `python -m benchmarks.quality` writes figures and a page; `--help` has its options.

Every run is kept in the folder `cache`, so that a study that was interrupted goes on where it was; delete it
after changing the code of a method or a task, which the names of the files do not tell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS, environment
from benchmarks.quality.base import base_folder, pretraining
from benchmarks.quality.documents import PLAN
from benchmarks.quality.plan import GROUPS, NUM_EXAMPLES, TASKS, Contender, few_examples
from benchmarks.quality.pool import run_all
from benchmarks.quality.report import write_page
from benchmarks.quality.runs import Run

FIGURES = RESULTS / "quality.json"
PARTS = (*GROUPS, "few", "documents")
PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def main() -> None:
    """Make the base, run what was not run yet, write all figures as JSON, and write the page anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="run only these, and write nothing")
    parser.add_argument("--groups", nargs="+", choices=PARTS, default=PARTS, help="run only this, and write nothing")
    arguments = parser.parse_args()
    base_folder()
    found = [entry for task in arguments.tasks for entry in study(task, arguments.groups, arguments.workers)]
    if "documents" in arguments.groups:
        run_all(PLAN, arguments.workers)
    if set(arguments.tasks) < set(TASKS) or set(arguments.groups) < set(PARTS):
        return
    figures = {
        "environment": environment(1),
        "base": pretraining(),
        "runs": found,
        "documents": [{**asdict(document), "report": document.figures()} for document in PLAN],
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    write_page(PAGE, FIGURES)


def study(task: str, groups: Sequence[str], workers: int) -> list[dict[str, Any]]:
    """Run what was not run yet of a task, and return all figures; the groups come in order, as peers choose rates."""
    found = []
    for group in (group for group in GROUPS if group in groups):
        contenders = list(GROUPS[group](task))
        run_all([run for contender in contenders for run in contender.tuning(task)], workers)
        run_all([run for contender in contenders for run in contender.finals(task)], workers)
        found += [entry for contender in contenders for entry in entries(contender, task, group)]
    if "few" in groups:
        few = [(contender, number) for contender in few_examples(task) for number in NUM_EXAMPLES]
        run_all([run for contender in few_examples(task) for run in contender.tuning(task)], workers)
        run_all([run for contender, number in few for run in contender.finals(task, number)], workers)
        found += [entry(run, contender, "few") for contender, number in few for run in contender.finals(task, number)]
    return found


def entries(contender: Contender, task: str, group: str) -> list[dict[str, Any]]:
    """Return the figures of a contender: of the runs that chose its learning rate, and of the final ones."""
    return [entry(run, contender, group) for run in (*contender.tuning(task), *contender.finals(task))]


def entry(run: Run, contender: Contender, group: str) -> dict[str, Any]:
    """Return a run with its figures, and what it belongs to."""
    return {"contender": contender.name, "group": group, **asdict(run), **run.figures()}


if __name__ == "__main__":
    main()
