"""`over`: run a test for every family of some groups, as one column of the support matrix; and its results, kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.families import FAMILIES, Group


def over(*groups: Group) -> Callable[[Callable[..., None]], Any]:
    """Parametrise a test by `family`; where a family has a gap of the test's name, it must fail."""

    def decorate(test: Callable[..., None]) -> Any:
        feature = test.__name__.removeprefix("test_")
        cases = []
        for family in FAMILIES.values():
            if family.group in groups:
                gap = family.gaps.get(feature)
                marks = [] if gap is None else [pytest.mark.xfail(reason=gap, strict=True)]
                cases.append(pytest.param(family, id=family.name, marks=marks))
        return pytest.mark.cell(pytest.mark.parametrize("family", cases)(test))

    return decorate


class CellRecorder:
    """Adds to a JSON file how the tests of cells ended: an empty string for passed, or the reason of a gap."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one test."""
        if report.when == "call" and "cell" in report.keywords:
            gap = getattr(report, "wasxfail", "")
            self.cells[report.nodeid] = gap if report.skipped else "" if report.passed else "failed"

    def pytest_sessionfinish(self) -> None:
        """Write them all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.cells, indent=1))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that keeps results."""
    parser.addoption("--cells", type=Path, help="JSON file to add the results of the support matrix to")


def pytest_configure(config: pytest.Config) -> None:
    """Keep results where they are asked for; of several processes, the one that hears from all does."""
    if config.getoption("--cells") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(CellRecorder(config.getoption("--cells")))
