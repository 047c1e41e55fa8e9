"""Tables in pages, each between two comments that name it, written from what tests have found."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def write_tables(page: Path, tables: Mapping[str, str], check: bool, remedy: str) -> None:
    """Put tables in their places; to `check`, write nothing and fail, naming the `remedy`, unless they are there."""
    old = new = page.read_text()
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, _, rest = new.partition(begin)
        new = f"{head}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    if check and new != old:
        sys.exit(f"{page} does not have what the tests show ({', '.join(tables)}); run {remedy}.")
    if not check:
        page.write_text(new)
