"""`over`: run a test for every family of some groups, as one column of the support matrix."""

from __future__ import annotations

from collections.abc import Callable
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
