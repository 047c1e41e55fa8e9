"""What these libraries warn of among themselves is not for antefix to repair."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the libraries' own deprecations pass in this folder."""
    for item in items:
        if item.path.parent.name == "ecosystem":
            for category in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))
