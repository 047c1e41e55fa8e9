"""Attention over a prefix that many rows share: its keys and values are read once, never copied per row.

Softmax over `[prefix; sequence]` splits exactly: each part is computed by itself, with its log-sum-exp, and the two are
weighed against each other (Milakov & Gimelshein 2018, arXiv 1805.02867; for shared prefixes Juravsky et al. 2024,
arXiv 2402.05099). The rows of one prefix are folded into one long row of queries.

Backward, each part's kernel is given the merged output and log-sum-exp, and so computes its share of the exact
gradient. Nothing is kept that other attention does not keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from antefix.attention.kernels import attend_part, differentiate_part
from antefix.shapes import Float

_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor[] prefix_keys, Tensor[] prefix_values, int[] prefix_indices, "
    "Tensor? mask, bool is_causal, float scale) -> (Tensor, Tensor)"
)

_MIN_TOKENS_TO_FOLD_HEADS = 512
"""A decoding step gains by folding heads if a prefix has at least this many tokens; measured on two cores."""


def shared_attention(
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    prefixes: Sequence[tuple[Tensor, Tensor]],
    prefix_indices: Sequence[int],
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    lay_together: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> Float[Tensor, "batch head query value_dim"]:
    """Attend over each row and its prefix.

    `prefixes` are keys `(kv_head, token, key_dim)` and values `(kv_head, token, value_dim)`; `prefix_indices` has the
    index of one for each row of the batch, -1 for none. `mask` covers the sequence alone and is added to its scores;
    every query sees every token of its prefix. `lay_together` returns keys and values of all prefixes, `(prefix,
    kv_head, token, dim)`; it is called without gradients, if all have the same length and the same number of rows.
    """
    keys, values = [key for key, _ in prefixes], [value for _, value in prefixes]
    if torch.compiler.is_compiling():
        output: Tensor = _operator(query, key, value, keys, values, list(prefix_indices), mask, is_causal, scale)[0]
    elif torch.is_grad_enabled():
        apply: Any = _SharedAttention.apply
        output = apply(query, key, value, mask, prefix_indices, is_causal, scale, *keys, *values)
    else:
        output = _merge(*_attend(query, key, value, keys, values, prefix_indices, mask, is_causal, scale, lay_together))
    return output


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_keys: Sequence[Tensor],
    prefix_values: Sequence[Tensor],
    prefix_indices: Sequence[int],
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    lay_together: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output and log-sum-exp `(batch, head, query)` of the sequence, and those of the prefixes."""
    sequence_output, sequence_lse = attend_part(query, key, value, mask, is_causal, scale)
    kv_heads = key.shape[1]

    def attend_prefixes(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if len(queries) == len(keys):
            return attend_part(queries, keys, values, None, False, scale)
        folded = _fold(queries, len(keys), kv_heads, keys.shape[2])
        output, lse = attend_part(folded, keys, values, None, False, scale)
        return _unfold(output, queries), _unfold(lse, queries)

    if _share_one_prefix(prefix_indices, prefix_keys):
        prefix_output, prefix_lse = attend_prefixes(query, prefix_keys[0].unsqueeze(0), prefix_values[0].unsqueeze(0))
    else:
        order, spans = _sort_by_prefix(tuple(prefix_indices))
        ordered = _reordered(query, order)
        if lay_together is not None and _can_lay_together(spans, prefix_keys):
            parts = [attend_prefixes(ordered, *lay_together())]
        else:
            parts = [
                _attend_nothing(ordered[span], value) if index < 0 else
                attend_prefixes(ordered[span], prefix_keys[index].unsqueeze(0), prefix_values[index].unsqueeze(0))
                for index, span in spans
            ]  # fmt: skip
        prefix_output, prefix_lse = (
            _reordered(torch.cat(tensors), _inverse(order)) for tensors in zip(*parts, strict=True)
        )
    return sequence_output, sequence_lse, prefix_output, prefix_lse


def _merge(sequence_output: Tensor, sequence_lse: Tensor, prefix_output: Tensor, prefix_lse: Tensor) -> Tensor:
    """Weigh the sequence's output against that of the prefixes.

    In fp32 at least: bf16 has no number between 0.996 and 1, so a few tokens beside a long prefix would weigh nothing.
    """
    weight = torch.sigmoid(prefix_lse - sequence_lse).unsqueeze(-1)
    if weight.dtype == sequence_output.dtype:
        return torch.lerp(sequence_output, prefix_output, weight)
    merged = torch.lerp(sequence_output.to(weight.dtype), prefix_output.to(weight.dtype), weight)
    return merged.to(sequence_output.dtype)


def _differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_keys: Sequence[Tensor],
    prefix_values: Sequence[Tensor],
    prefix_indices: Sequence[int],
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    output: Tensor,
    lse: Tensor,
    needs_sequence_grads: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
    """Return the gradients of query, key and value, None unless `needs_sequence_grads`, and those of the prefixes."""
    kv_heads = key.shape[1]
    prefix_grads: list[tuple[Tensor, Tensor] | None] = [None] * len(prefix_keys)

    def differentiate_prefix(prefix_index: int, *tensors: Tensor) -> Tensor:
        prefix_key, prefix_value = prefix_keys[prefix_index], prefix_values[prefix_index]
        rows_grad, rows_query, rows_output, rows_lse = (_fold(t, 1, kv_heads, prefix_key.shape[1]) for t in tensors)
        grad_query, grad_key, grad_value = differentiate_part(
            rows_grad, rows_query, prefix_key[None], prefix_value[None], rows_output, rows_lse, None, False, scale
        )
        prefix_grads[prefix_index] = grad_key[0], grad_value[0]
        return _unfold(grad_query, tensors[1])

    by_row = (grad, query, output, lse)
    if _share_one_prefix(prefix_indices, prefix_keys):
        prefix_grad_query = differentiate_prefix(0, *by_row)
    else:
        order, spans = _sort_by_prefix(tuple(prefix_indices))
        ordered = [_reordered(tensor, order) for tensor in by_row]
        grads = [
            torch.zeros_like(ordered[1][span]) if index < 0 else
            differentiate_prefix(index, *(tensor[span] for tensor in ordered))
            for index, span in spans
        ]  # fmt: skip
        prefix_grad_query = _reordered(torch.cat(grads), _inverse(order))
    pairs = [
        pair or (torch.zeros_like(prefix_key), torch.zeros_like(prefix_value))
        for pair, prefix_key, prefix_value in zip(prefix_grads, prefix_keys, prefix_values, strict=True)
    ]
    grad_keys, grad_values = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if not needs_sequence_grads:  # nothing below trains, as in the first layer of a frozen base
        return None, None, None, grad_keys, grad_values
    grad_query, grad_key, grad_value = differentiate_part(grad, query, key, value, output, lse, mask, is_causal, scale)
    return grad_query.add_(prefix_grad_query), grad_key, grad_value, grad_keys, grad_values


def _share_one_prefix(prefix_indices: Sequence[int], prefixes: Sequence[Tensor]) -> bool:
    return len(prefixes) == 1 and -1 not in prefix_indices


@functools.lru_cache(maxsize=1024)
def _sort_by_prefix(prefix_indices: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, slice], ...]]:
    """Return the rows sorted by prefix, and the index of each prefix with the span of its rows in that order."""
    order = sorted(range(len(prefix_indices)), key=prefix_indices.__getitem__)
    spans, start = [], 0
    for index in dict.fromkeys(prefix_indices[row] for row in order):
        stop = start + prefix_indices.count(index)
        spans.append((index, slice(start, stop)))
        start = stop
    return tuple(order), tuple(spans)


def _can_lay_together(spans: Sequence[tuple[int, slice]], prefixes: Sequence[Tensor]) -> bool:
    """Return whether all rows have a prefix, and all prefixes the same shape and the same number of rows."""
    sizes = {span.stop - span.start for _, span in spans}
    return spans[0][0] >= 0 and len(sizes) == len({prefix.shape for prefix in prefixes}) == 1


def _reordered(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    return tensor if order == tuple(range(len(order))) else tensor[list(order)]


@functools.lru_cache(maxsize=1024)
def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _attend_nothing(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return what attention over no keys amounts to: an output of zeros, without weight."""
    output = query.new_zeros(*query.shape[:3], value.shape[3])
    return output, query.new_full(query.shape[:3], float("-inf"), dtype=_lse_dtype(query))


def _lse_dtype(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


def _fold(tensor: Tensor, num_prefixes: int, num_key_value_heads: int, num_virtual_tokens: int) -> Tensor:
    """Lay the rows of each prefix end to end, as `(prefix, head, row * query, ...)`.

    This is a view if the heads of a query lie together in memory, query after query. One query per row is little for a
    kernel: before a long prefix, the query heads of a key/value head are laid end to end as well, which is worth the
    copy.
    """
    rows, heads, queries, *dim = tensor.shape
    if rows == num_prefixes:
        return tensor
    folds_heads = queries == 1 and num_virtual_tokens >= _MIN_TOKENS_TO_FOLD_HEADS
    if queries == num_prefixes == 1 and not folds_heads:
        return tensor.transpose(0, 2)
    if not folds_heads:
        return tensor.transpose(1, 2).reshape(num_prefixes, -1, heads, *dim).transpose(1, 2)
    grouped = tensor.reshape(num_prefixes, -1, num_key_value_heads, heads // num_key_value_heads, *dim)
    return grouped.transpose(1, 2).reshape(num_prefixes, num_key_value_heads, -1, *dim)


def _unfold(folded: Tensor, like: Tensor) -> Tensor:
    """Undo `_fold` for what has the rows, heads and queries of `like`."""
    rows, heads, queries = like.shape[:3]
    num_prefixes, folded_heads, _, *dim = folded.shape
    if rows == num_prefixes:
        return folded
    if queries == num_prefixes == 1 and folded_heads == heads:
        return folded.transpose(0, 2)
    if folded_heads == heads:
        return folded.transpose(1, 2).reshape(rows, queries, heads, *dim).transpose(1, 2)
    grouped = folded.view(num_prefixes, folded_heads, rows // num_prefixes, -1, *dim)
    return grouped.transpose(1, 2).reshape(rows, heads, 1, *dim)


def _attend_both(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp over both parts, with the heads of a query together in memory, as `_fake` says."""
    sequence_output, sequence_lse, prefix_output, prefix_lse = _attend(query, *rest)
    output = _merge(sequence_output, sequence_lse, prefix_output, prefix_lse)
    return _query_major(output), _query_major(torch.logaddexp(sequence_lse, prefix_lse))


def _query_major(tensor: Tensor) -> Tensor:
    by_query = tensor.transpose(1, 2)
    return tensor if by_query.is_contiguous() else by_query.contiguous().transpose(1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, prefix_keys, prefix_values, ctx.prefix_indices, mask, ctx.is_causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, mask, *output, *prefix_keys, *prefix_values)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    query, key, value, mask, output, lse, *prefixes = ctx.saved_tensors
    half = len(prefixes) // 2
    needs_sequence_grads = any(ctx.needs_input_grad[:3])
    grads = _differentiate(
        grad, query, key, value, prefixes[:half], prefixes[half:], ctx.prefix_indices, mask, ctx.is_causal, ctx.scale,
        output, lse, needs_sequence_grads,
    )  # fmt: skip
    return *grads, None, None, None, None


_operator = torch.library.custom_op("antefix::shared_attention", _attend_both, mutates_args=(), schema=_SCHEMA)
_operator.register_autograd(_backward, setup_context=_setup_context)


@_operator.register_fake
def _fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    output = query.new_empty(batch, queries, heads, value.shape[3])
    lse = query.new_empty(batch, queries, heads, dtype=_lse_dtype(query))
    return output.transpose(1, 2), lse.transpose(1, 2)


class _SharedAttention(torch.autograd.Function):
    """The operator without its dispatcher, which takes longer than short attention itself."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefix_indices: Any,
        is_causal: bool, scale: float, *prefixes: Tensor,
    ) -> Tensor:  # fmt: skip
        half = len(prefixes) // 2
        inputs = query, key, value, prefixes[:half], prefixes[half:], prefix_indices, mask, is_causal, scale
        output, lse = _attend_both(*inputs)
        _setup_context(ctx, inputs, (output, lse))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad_query, grad_key, grad_value, grad_keys, grad_values, *_ = _backward(ctx, grad)
        return grad_query, grad_key, grad_value, None, None, None, None, *grad_keys, *grad_values
