"""The check that kernels must pass passes the right ones and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from antefix.attention import shared
from antefix.attention.check import computes_right

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_kernels_pass(dtype: torch.dtype) -> None:
    assert computes_right("operator", CPU, dtype)


def test_wrong_kernels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    attend, differentiate = shared.attend_part, shared.differentiate_part

    def wrong_total(*args: Any) -> tuple[Tensor, Tensor]:
        output, total = attend(*args)
        return output, total * 1.3

    def wrong_gradients(*args: Any) -> tuple[Tensor, ...]:
        return tuple(1.2 * grad for grad in differentiate(*args))

    def missing(*args: Any) -> None:
        raise RuntimeError("no kernel")

    for name, kernel in (
        ("attend_part", wrong_total),
        ("differentiate_part", wrong_gradients),
        ("attend_part", missing),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(shared, name, kernel)
            assert not computes_right("operator", CPU, torch.float32)
    assert computes_right("operator", CPU, torch.float32)
