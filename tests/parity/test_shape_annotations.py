"""The flag that this folder's tests run with really checks the shapes in annotations."""

from __future__ import annotations

import pytest
import torch

from antefix.encoder import split
from antefix.sites import Site


def test_a_wrong_shape_is_caught(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("jaxtyping_packages"):
        pytest.skip("shapes are checked only with --jaxtyping-packages=antefix,beartype.beartype, as in make test")
    from jaxtyping import TypeCheckError

    site = Site("a", "decoder", 0, 1, 2, 2)
    with pytest.raises(TypeCheckError):
        split(torch.zeros(4), [site])
