"""The tables of exactness: `python -m tests.vllm.table RESULTS.xml docs/serving.md` writes them from results of tests.

With `--check` it writes nothing and fails unless the page has the first table already; the second depends on how a
processor rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.page import write_tables

HEADS = {
    "exact": ["an engine with", "first round", "second round"],
    "lossy": [
        "numbers kept in",
        "first token, prefix",
        "first token, text",
        "24 tokens, prefix",
        "24 tokens, text",
    ],
}


def read_rows(results: Path, kind: str) -> list[list[str]]:
    """Return the rows that tests of a kind left in their JUnit report; fails where a test did."""
    root = ElementTree.parse(results).getroot()
    if root.find(".//failure") is not None or root.find(".//error") is not None:
        sys.exit(f"some of the tests in {results} failed; mend them first.")
    return [json.loads(entry.attrib["value"]) for entry in root.iter("property") if entry.attrib["name"] == kind]


def render(kind: str, rows: list[list[str]]) -> str:
    """Return a table as Markdown."""
    lines = [HEADS[kind], ["---"] * len(HEADS[kind]), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write or check the tables of a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="what pytest --junit-xml wrote")
    parser.add_argument("page", type=Path, help="page to write to")
    parser.add_argument("--check", action="store_true", help="fail unless the page has the first table already")
    arguments = parser.parse_args()
    kinds = ("exact",) if arguments.check else HEADS
    tables = {kind: render(kind, read_rows(arguments.results, kind)) for kind in kinds}
    write_tables(arguments.page, tables, arguments.check, "make serving-table")


if __name__ == "__main__":
    main()
