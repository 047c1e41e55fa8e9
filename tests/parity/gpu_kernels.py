"""A GPU's attention kernels written out in float64: without a GPU, it is seen what they are asked and what comes of it.

They refuse what PyTorch's own refuse or silently misread: other dtypes, widths and numbers of heads, heads whose
numbers lie apart, masks whose rows are not aligned, log-sum-exps that are not padded to a block.
"""

# ruff: noqa: PLR0917 - the arguments are PyTorch's

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

_HALF = (torch.float16, torch.bfloat16)
_ALIGNMENT = 8
_LSE_BLOCK = 32


@contextmanager
def gpu_kernels() -> Iterator[list[str]]:
    """Give PyTorch these kernels for the CPU, where it has none by their names; the list notes which are called."""
    calls: list[str] = []
    library = torch.library.Library("aten", "IMPL")

    def noted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return kernel(*args, **kwargs)

        return call

    for name, kernel in {
        "flash_attention": _flash, "flash_attention_backward": _flash_backward,
        "efficient_attention": _efficient, "efficient_attention_backward": _efficient_backward,
    }.items():  # fmt: skip
        library.impl(f"_scaled_dot_product_{name}", noted(name, kernel), "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, is_causal: bool = False, *, scale: float
) -> tuple[Any, ...]:
    _check(query, key, value, dtypes=_HALF)
    assert not is_causal or query.shape[2] == key.shape[2]  # with fewer queries it would take them for the last ones
    output, lse = _attend(query, key, value, None, is_causal, scale)
    nothing = query.new_empty(0)
    return _query_major(output), lse, nothing, nothing, query.shape[2], key.shape[2], nothing, nothing, nothing


def _flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor,
    starts: None, key_starts: None, num_queries: int, num_keys: int, dropout: float, is_causal: bool,
    *seeds: Tensor, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    _check(grad, query, key, value, output, dtypes=_HALF)
    assert (num_queries, num_keys) == (query.shape[2], key.shape[2])
    assert lse.is_contiguous()
    return _differentiate(grad, query, key, value, output, lse, None, is_causal, scale)


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, with_lse: bool, dropout: float = 0.0,
    is_causal: bool = False, *, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    _check(query, key, value, dtypes=(*_HALF, torch.float32))
    _check_mask(query, key, mask)
    assert with_lse
    output, lse = _attend(query, key, value, mask, is_causal, scale)
    lse = pad(lse, (0, -lse.shape[2] % _LSE_BLOCK), value=float("inf"))
    return _query_major(output), lse, query.new_empty(0), query.new_empty(0)


def _efficient_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output: Tensor, lse: Tensor,
    seed: Tensor, offset: Tensor, dropout: float, wanted: list[bool], is_causal: bool = False, *,
    scale: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    _check(grad, query, key, value, output, dtypes=(*_HALF, torch.float32))
    _check_mask(query, key, mask)
    queries = query.shape[2]
    assert lse.shape[2] % _LSE_BLOCK == 0
    assert lse.is_contiguous()
    assert bool((lse[..., queries:] == float("inf")).all())
    assert query.dtype not in _HALF or output.transpose(1, 2).is_contiguous()
    assert wanted == [True, True, True, False]
    return *_differentiate(grad, query, key, value, output, lse[..., :queries], mask, is_causal, scale), None


def _check(*tensors: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    for tensor in tensors:
        assert tensor.dtype == tensors[0].dtype
        assert tensor.dtype in dtypes
        assert tensor.stride(3) == 1
        assert tensor.shape[3] == tensors[0].shape[3] <= 256
        assert tensor.shape[3] % _ALIGNMENT == 0


def _check_mask(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
    """Look at how a mask lies; kernels with masks take as many key/value heads as query heads."""
    assert query.shape[1] == key.shape[1]
    if mask is not None:
        assert mask.dtype == query.dtype
        assert mask.shape == (*query.shape[:3], key.shape[2])
        assert mask.stride(3) == 1
        assert not any(step % _ALIGNMENT for size, step in zip(mask.shape[:3], mask.stride(), strict=False) if size > 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    scores = _scores(query, key, mask, is_causal, scale)
    output = scores.softmax(-1) @ _for_each_head(value, query)
    return output.to(query.dtype), scores.logsumexp(-1).float()


def _differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weigh by the log-sum-exp that is given, as the kernels do, rather than by one of these keys alone."""
    weights = (_scores(query, key, mask, is_causal, scale) - lse.double().unsqueeze(-1)).exp()
    upstream, values = grad.double(), _for_each_head(value, query)
    drift = (upstream * output.double()).sum(-1, keepdim=True)
    grad_scores = weights * (upstream @ values.transpose(2, 3) - drift) * scale
    grads = (
        grad_scores @ _for_each_head(key, query),
        (grad_scores.transpose(2, 3) @ query.double()).unflatten(1, (key.shape[1], -1)).sum(2),
        (weights.transpose(2, 3) @ upstream).unflatten(1, (key.shape[1], -1)).sum(2),
    )
    grad_query, grad_key, grad_value = (part.to(query.dtype) for part in grads)
    return grad_query, grad_key, grad_value


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    scores = query.double() @ _for_each_head(key, query).transpose(2, 3) * scale
    if mask is not None:
        scores = scores + mask.double()
    if is_causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), float("-inf"))
    return scores


def _for_each_head(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.double().repeat_interleave(query.shape[1] // tensor.shape[1], 1)


def _query_major(output: Tensor) -> Tensor:
    return output.transpose(1, 2).contiguous().transpose(1, 2)
