"""The check that kernels must pass passes the right ones and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from antefix.attention import check, shared
from antefix.attention.check import HeadShape, computes_right, is_trusted

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [HeadShape(), HeadShape(12, 6, 1), HeadShape(80, 80, 4)], ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
def test_right_kernels_pass(dtype: torch.dtype, heads: HeadShape, is_masked: bool) -> None:
    assert computes_right("operator", CPU, dtype, heads, is_masked)


def test_wrong_kernels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    attend, differentiate = shared.attend_part, shared.differentiate_part

    def wrong_lse(*args: Any) -> tuple[Tensor, Tensor]:
        output, lse = attend(*args)
        return output, lse * 1.3

    def wrong_gradients(*args: Any) -> tuple[Tensor, ...]:
        return tuple(1.2 * grad for grad in differentiate(*args))

    def missing(*args: Any) -> None:
        raise RuntimeError("no kernel")

    for name, kernel in (
        ("attend_part", wrong_lse),
        ("differentiate_part", wrong_gradients),
        ("attend_part", missing),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(shared, name, kernel)
            assert not computes_right("operator", CPU, torch.float32)
    assert computes_right("operator", CPU, torch.float32)


def test_one_wrong_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is right but for the last of 32 queries, and for masks alone."""
    attend = shared.attend_part

    def wrong(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        output, lse = attend(query, key, value, mask, *rest)
        if mask is not None and query.shape[2] == 32:
            output[:, :, -1] *= 2
        return output, lse

    monkeypatch.setattr(shared, "attend_part", wrong)
    assert computes_right("operator", CPU, torch.float32, is_masked=False)
    assert not computes_right("operator", CPU, torch.float32, is_masked=True)


def test_what_was_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of hiding are looked at together, once."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(check, "_verdicts", {})
    monkeypatch.setattr(check, "computes_right", lambda *key: asked.append(key) or key[-1])
    kind = ("operator", CPU, torch.float32, HeadShape())
    assert [is_trusted(*kind, masked) for masked in (True, False, True)] == [True, False, True]
    assert asked == [(*kind, False), (*kind, True)]


def test_a_lack_of_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(shared, "attend_part", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        computes_right("operator", CPU, torch.float32)
