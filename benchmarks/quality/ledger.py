"""Figures of the study's runs, a line of JSON each, so that a study that was interrupted goes on where it was.

The file is part of the repository: whoever wants to add a method runs that method alone. What a line was measured by is
not told by its run, so lines of a method, a task or a base that changed are to be deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from benchmarks.__main__ import RESULTS

FILE = RESULTS / "quality.jsonl"


class Measurable(Protocol):
    """Something to run for its figures; two with the same identity have the same figures."""

    @property
    def identity(self) -> dict[str, Any]:
        """What it is, as JSON has it."""

    def execute(self) -> dict[str, Any]:
        """Run it and return its figures."""


class Ledger:
    """The figures of all runs so far."""

    def __init__(self, file: Path = FILE) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file.is_file() else ()
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._figures: dict[str, dict[str, Any]] = {_key(line["run"]): line["figures"] for line in self.lines}

    def __contains__(self, run: Measurable) -> bool:
        return _key(run.identity) in self._figures

    def figures(self, run: Measurable) -> dict[str, Any]:
        """Return the figures of a run that is known; raises `KeyError` for one that is to be run first."""
        return self._figures[_key(run.identity)]

    def record(self, run: Measurable, figures: dict[str, Any], environment: dict[str, Any]) -> None:
        """Write the figures of a run, and what they depend on, behind the rest."""
        line = {"run": run.identity, "figures": figures, "environment": environment}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self._figures[_key(run.identity)] = figures


def _key(identity: dict[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)
