"""Study how good prefixes are: `python -m benchmarks.quality` runs what was not run yet and writes the page anew."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from benchmarks.quality.corpus import SHARED
from benchmarks.quality.documents import PLAN
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.plan import GROUPS, TASKS, finals
from benchmarks.quality.pool import run_all
from benchmarks.quality.report import write_page

DOCUMENTS = "documents"
PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def main() -> None:
    """Run what the ledger does not have yet, and write the page of all that it has."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--only", nargs="+", choices=(*TASKS, DOCUMENTS), help="run only these")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, help="run only these of the tasks")
    arguments = parser.parse_args()
    ledger, parts = Ledger(), arguments.only or (*TASKS, DOCUMENTS)
    if set(parts) & set(TASKS) and not SHARED.is_dir():
        parser.error(f"the data of the tasks is not in {SHARED}: set ANTEFIX_SHARED, or give --only {DOCUMENTS}")
    for task in (part for part in parts if part in TASKS):
        study(task, arguments.groups or GROUPS, ledger, arguments.workers)
    if DOCUMENTS in parts:
        run_all(PLAN, ledger, arguments.workers)
    write_page(PAGE, ledger)


def study(task: str, groups: Collection[str], ledger: Ledger, workers: int) -> None:
    """Run what was not run yet of a task."""
    for group in (group for group in GROUPS if group in groups):
        contenders = GROUPS[group](task, ledger)
        run_all([run for contender in contenders for run in contender.tuning(task)], ledger, workers)
        run_all([run for contender in contenders for run in finals(group, contender, task, ledger)], ledger, workers)


if __name__ == "__main__":
    main()
