"""Attention over a prefix that many rows share: its keys and values are read once, never copied for a row.

Softmax over `[prefix; sequence]` splits exactly: each part is computed on its own, with its log-sum-exp, and the two
are weighed against each other (Milakov & Gimelshein 2018, arXiv 1805.02867; for shared prefixes Juravsky et al. 2024,
arXiv 2402.05099). The rows of one prefix are folded into one long row of queries.

Backward, each part is given the merged output and log-sum-exp: what its kernel then computes is its share of the exact
gradient, so nothing has to be kept but what any attention keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from antefix.attention.kernels import attend_part, differentiate_part
from antefix.shapes import Float

_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor[] prefix_keys, Tensor[] prefix_values, int[] rows, Tensor? mask, "
    "bool is_causal, float scale) -> (Tensor, Tensor)"
)

_MOST_SCORES = 100_000
"""Scores of prefix tokens up to which a decoding step writes them out, measured on two cores."""


def shared_attention(
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    prefixes: Sequence[tuple[Tensor, Tensor]],
    rows: Sequence[int],
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Float[Tensor, "batch head query value_dim"]:
    """Attend over the prefix of each row and the row itself.

    `prefixes` are keys `(kv_head, token, key_dim)` and values `(kv_head, token, value_dim)`; `rows` numbers one for
    each row of the batch, -1 for none. `mask`, of the sequence alone, is added to its scores; every query sees every
    token of its prefix.
    """
    keys, values = [key for key, _ in prefixes], [value for _, value in prefixes]
    arguments = (query, key, value, keys, values, list(rows), mask, is_causal, scale)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        output: Tensor = _operator(*arguments)[0]
        return output
    if query.shape[2] == 1 and len(prefixes) == 1 and -1 not in rows and (mask is None or mask.shape[1] == 1):
        batch, heads = query.shape[:2]
        if batch * heads * keys[0].shape[1] < _MOST_SCORES:
            return _decode(query, key, value, keys[0], values[0], mask, scale)
    return _attend(*arguments)[0]


def _decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Attend with one query a row: so few scores that one softmax over all of them is cheaper than two kernels."""
    batch, heads, _, dim = query.shape
    kv_heads, tokens = prefix_key.shape[:2]
    grouped = (query * scale).view(batch, kv_heads, heads // kv_heads, dim)
    scores = torch.bmm(grouped.flatten(0, 1), key.transpose(2, 3).flatten(0, 1)).view(batch, kv_heads, -1, key.shape[2])
    if mask is not None:
        scores = scores + mask
    of_prefix = torch.bmm(grouped.transpose(0, 1).flatten(1, 2), prefix_key.transpose(1, 2))
    of_prefix = of_prefix.view(kv_heads, batch, -1, tokens).transpose(0, 1)
    weights = torch.cat([of_prefix, scores], dim=-1).softmax(-1)
    part = torch.bmm(weights[..., :tokens].transpose(0, 1).flatten(1, 2), prefix_value)
    part = part.view(kv_heads, batch, -1, value.shape[3]).transpose(0, 1).flatten(0, 1)
    output = torch.baddbmm(part, weights[..., tokens:].flatten(0, 1), value.flatten(0, 1))
    return output.view(batch, heads, 1, value.shape[3])


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_keys: Sequence[Tensor],
    prefix_values: Sequence[Tensor],
    rows: Sequence[int],
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output and its log-sum-exp `(batch, head, query)`."""
    output, total = attend_part(query, key, value, mask, is_causal, scale)
    for group, (prefix_key, prefix_value) in enumerate(zip(prefix_keys, prefix_values, strict=True)):
        chosen = _rows_of(group, rows, query)
        if chosen is None:
            folded = _fold(query)
            part, part_total = attend_part(folded, prefix_key[None], prefix_value[None], None, False, scale)
            output, total = _merge(output, total, _unfold(part, query), _unfold(part_total[..., None], query)[..., 0])
        elif len(chosen):
            own = query[chosen]
            folded = _fold(own)
            part, part_total = attend_part(folded, prefix_key[None], prefix_value[None], None, False, scale)
            merged = _merge(
                output[chosen], total[chosen], _unfold(part, own), _unfold(part_total[..., None], own)[..., 0]
            )
            output, total = output.index_copy(0, chosen, merged[0]), total.index_copy(0, chosen, merged[1])
    return _query_by_query(output), _query_by_query(total)


def _query_by_query(tensor: Tensor) -> Tensor:
    """Lay `(batch, head, query, ...)` out with all heads of a query together, as a layer goes on with them."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _rows_of(group: int, rows: Sequence[int], like: Tensor) -> Tensor | None:
    """Return the numbers of the rows of a group, None for all."""
    chosen = [number for number, owner in enumerate(rows) if owner == group]
    return None if len(chosen) == len(rows) else torch.tensor(chosen, dtype=torch.long, device=like.device)


def _fold(tensor: Tensor) -> Tensor:
    """Lay the queries of all rows end to end, `(1, head, row * query, dim)`: a view where queries lie one by one."""
    return tensor.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]


def _unfold(folded: Tensor, like: Tensor) -> Tensor:
    """Undo `_fold` for something of the rows and queries of `like`."""
    unfolded: Tensor = folded[0].transpose(0, 1).unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
    return unfolded


def _merge(output: Tensor, total: Tensor, other: Tensor, other_total: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh two parts of one softmax by their log-sum-exp."""
    weight = torch.sigmoid(other_total - total)[..., None].to(output.dtype)
    return torch.lerp(output, other, weight), torch.logaddexp(total, other_total)


def _differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_keys: Sequence[Tensor],
    prefix_values: Sequence[Tensor],
    rows: Sequence[int],
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    output: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients of query, key, value, prefix keys and prefix values."""
    grad_query, grad_key, grad_value = differentiate_part(
        grad, query, key, value, output, total, mask, is_causal, scale
    )
    grad_keys, grad_values = [], []
    for group, (prefix_key, prefix_value) in enumerate(zip(prefix_keys, prefix_values, strict=True)):
        chosen = _rows_of(group, rows, query)
        if chosen is not None and not len(chosen):
            grad_keys.append(torch.zeros_like(prefix_key))
            grad_values.append(torch.zeros_like(prefix_value))
            continue
        parts = [part if chosen is None else part[chosen] for part in (grad, query, output, total[..., None])]
        folded_grad, folded_query, folded_output, folded_total = (_fold(part) for part in parts)
        share, of_key, of_value = differentiate_part(
            folded_grad, folded_query, prefix_key[None], prefix_value[None], folded_output, folded_total[..., 0],
            None, False, scale,
        )  # fmt: skip
        share = _unfold(share, parts[1])
        grad_query = grad_query + share if chosen is None else grad_query.index_add(0, chosen, share)
        grad_keys.append(of_key[0])
        grad_values.append(of_value[0])
    return grad_query, grad_key, grad_value, grad_keys, grad_values


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, prefix_keys, prefix_values, ctx.rows, mask, ctx.is_causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, mask, *output, *prefix_keys, *prefix_values)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, key, value, mask, output, total, *prefixes = ctx.saved_tensors
    half = len(prefixes) // 2
    keys, values = prefixes[:half], prefixes[half:]
    grads = _differentiate(
        grad, query, key, value, keys, values, ctx.rows, mask, ctx.is_causal, ctx.scale, output, total
    )
    return *grads, None, None, None, None


_operator = torch.library.custom_op("antefix::shared_attention", _attend, mutates_args=(), schema=_SCHEMA)
_operator.register_autograd(_backward, setup_context=_keep)


@_operator.register_fake
def _shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_keys: Sequence[Tensor],
    prefix_values: Sequence[Tensor],
    rows: Sequence[int],
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    output = query.new_empty(batch, queries, heads, value.shape[3])
    total = query.new_empty(batch, queries, heads, dtype=torch.promote_types(query.dtype, torch.float32))
    return output.transpose(1, 2), total.transpose(1, 2)
