"""The support matrix: `python -m tests.parity.matrix CELLS docs/support.md` writes it from results of the tests.

With `--check` it writes nothing and fails unless the page has it already.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from tests.page import write_tables
from tests.parity.families import FAMILIES

TITLES = {
    "test_rule.py": "What a prefix means",
    "test_backends.py": "Attention, dtype, compiler",
    "test_training.py": "Training",
    "test_generate.py": "Generating",
    "test_heads.py": "Heads trained beside a prefix",
}
Cells = dict[tuple[str, str, str], str]


def read_cells(path: Path) -> Cells:
    """Return how each cell ended, by test file, test and family."""
    cells = {}
    for nodeid, ending in json.loads(path.read_text()).items():
        file, test, family = re.fullmatch(r".*/([^/]+)::test_(\w+)\[(.+)\]", nodeid).groups()  # type: ignore[union-attr]
        cells[file, test, family] = ending
    return cells


def render(cells: Cells) -> str:
    """Return the matrix as Markdown, a table for each test file with a column for each test."""
    reasons: list[str] = []
    parts = [table(cells, file, reasons) for file in TITLES]
    notes = [f"{number}. {reason[0].upper()}{reason[1:]}." for number, reason in enumerate(reasons, start=1)]
    return "\n\n".join([*parts, "## Reasons", "\n".join(notes)])


def table(cells: Cells, file: str, reasons: list[str]) -> str:
    """Return one table; reasons for gaps are numbered through all of them."""
    tests = list(dict.fromkeys(test for where, test, _ in cells if where == file))
    families = [name for name in FAMILIES if any((file, test, name) in cells for test in tests)]
    rows = [[name, *(mark(cells.get((file, test, name)), reasons) for test in tests)] for name in families]
    passed = sum(ending == "" for (where, _, _), ending in cells.items() if where == file)
    total = sum(where == file for where, _, _ in cells)
    lines = [
        f"## {TITLES[file]}: {passed} of {total}",
        "",
        f"Each cell is `tests/parity/{file}::test_COLUMN[ROW]`, with `_` for spaces in the column.",
        "",
        *(" | ".join(["", *row, ""]).strip() for row in [["", *(t.replace("_", " ") for t in tests)]]),
        "|" + " --- |" * (len(tests) + 1),
        *(" | ".join(["", *row, ""]).strip() for row in rows),
    ]
    return "\n".join(lines)


def mark(ending: str | None, reasons: list[str]) -> str:
    """Return what a cell shows: yes, no with the number of its reason, or a dash where there is nothing to test."""
    if ending is None:
        return "·"
    if ending == "":
        return "yes"
    if ending not in reasons:
        reasons.append(ending)
    return f"no ({reasons.index(ending) + 1})"


def main() -> None:
    """Write or check the matrix of a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=Path, help="JSON file that pytest --cells wrote")
    parser.add_argument("page", type=Path, help="page to write to, between its two markers")
    parser.add_argument("--check", action="store_true", help="fail unless the page has this matrix already")
    arguments = parser.parse_args()
    cells = read_cells(arguments.cells)
    failed = [" ".join(cell) for cell, ending in cells.items() if ending == "failed"]
    if failed:
        sys.exit(f"{len(failed)} cells failed, the first is {failed[0]}; mend them first.")
    write_tables(arguments.page, {"support matrix": render(cells)}, arguments.check, "make matrix")


if __name__ == "__main__":
    main()
