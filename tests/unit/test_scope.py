"""What is selected is selected for as long as its own context lasts, in whatever order contexts end."""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch

from antefix.scope import Scope

NAMES = ("a", "b", "a")


def stream(scope: Scope, name: str) -> Iterator[str]:
    """Select a prefix for as long as this writes, as a service that streams does."""
    with scope.selecting(name):
        while True:
            yield name


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_generators_end_in_any_order(order: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    scope, other = Scope(), Scope()
    with other.selecting("other's"), scope.selecting("outer"):
        streams = [stream(scope, name) for name in NAMES]
        for one in streams:
            next(one)
        left = list(range(3))
        for number in order:
            streams[number].close()
            left.remove(number)
            expected = ("outer", *(NAMES[one] for one in left))
            assert scope.selections == expected
            with monkeypatch.context() as compiling:
                compiling.setattr(torch.compiler, "is_compiling", lambda: True)
                assert scope.selections == expected, "a compiled forward goes by the same"
        assert other.selections == ("other's",)
    assert scope.selections == other.selections == ()


def test_one_that_ends_elsewhere_changes_nothing_there() -> None:
    scope = Scope()
    streamed = stream(scope, "a")
    contextvars.copy_context().run(next, streamed)
    with scope.selecting("b"):
        streamed.close()
        assert scope.selections == ("b",)
    assert scope.selections == ()
