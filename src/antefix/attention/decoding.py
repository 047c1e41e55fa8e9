"""One query per row on a GPU: a single kernel over prefix and sequence, whichever prefix each row has.

Decoding a token is bound by kernel launches: calls for the two parts, for each prefix of a batch, and for merging them
would take longer than the arithmetic. This kernel reads a row's prefix in place, by its address, and continues with the
row's own keys (online softmax: Milakov & Gimelshein 2018, arXiv 1805.02867). It is written in Triton, which comes with
PyTorch for GPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch for CPUs comes without it
    triton = None

_MAX_TOKENS = 8192
"""One program handles a whole row for one key/value head: longer rows are for kernels that split them."""
_ALIGNMENT = 16
"""Bytes that are read in one piece if all addresses are multiples of this."""
_BLOCK_SIZE, _NUM_WARPS, _NUM_STAGES = 8192, 4, 3
"""Numbers per block of keys, warps per program, and blocks being loaded at a time."""


def can_decode(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefixes: Sequence[tuple[Tensor, Tensor]]
) -> bool:
    """Return whether the kernel takes such tensors: one query per row, no gradients, and not too many tokens."""
    if triton is None or query.shape[2] != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    longest = key.shape[2] + max(prefix.shape[1] for prefix, _ in prefixes)
    one_mask = mask is None or mask.shape[1] == 1
    heads_contiguous = key.stride(3) == value.stride(3) == query.stride(3) == 1
    prefixes_contiguous = all(keys.is_contiguous() and values.is_contiguous() for keys, values in prefixes)
    return longest <= _MAX_TOKENS and one_mask and heads_contiguous and prefixes_contiguous


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefixes: Sequence[tuple[Tensor, Tensor]],
    prefix_indices: Sequence[int],
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Return `(batch, head, 1, value_dim)`: what `shared_attention` returns for one query per row."""
    batch, heads, _, key_dim = query.shape
    kv_heads, value_dim = key.shape[1], value.shape[3]
    addresses = tuple((keys.data_ptr(), values.data_ptr(), keys.shape[1]) for keys, values in prefixes)
    table, is_aligned = _prefix_table(query.device, addresses, tuple(prefix_indices))
    is_aligned = is_aligned and key_dim * query.itemsize % _ALIGNMENT == value_dim * query.itemsize % _ALIGNMENT == 0
    output = query.new_empty(batch, 1, heads, value_dim).transpose(1, 2)
    group_size = heads // kv_heads
    block_dim = triton.next_power_of_2(max(key_dim, value_dim, 16))
    with torch.cuda.device_of(query):
        _decode[(batch, kv_heads)](
            query, key, value, table, query if mask is None else mask, output, scale, key.shape[2],
            query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3],
            0 if mask is None else mask.stride(0), 0 if mask is None else mask.stride(3),
            key_dim=key_dim, value_dim=value_dim, block_dim=block_dim, group_size=group_size,
            block_heads=max(16, triton.next_power_of_2(group_size)), block_tokens=min(128, _BLOCK_SIZE // block_dim),
            is_aligned=is_aligned, is_masked=mask is not None, num_warps=_NUM_WARPS, num_stages=_NUM_STAGES,
        )  # fmt: skip
    return output


@functools.lru_cache(maxsize=4096)
def _prefix_table(
    device: torch.device, addresses: tuple[tuple[int, int, int], ...], prefix_indices: tuple[int, ...]
) -> tuple[Tensor, bool]:
    """Return `(3, row)`: the addresses of the keys and values of each row's prefix, and its length in tokens.

    A table depends on addresses alone, not on what they hold, so it is copied to the GPU once for many decoding steps.
    Also return whether all addresses are aligned.
    """
    by_row = [addresses[index] if index >= 0 else (0, 0, 0) for index in prefix_indices]
    is_aligned = all(address % _ALIGNMENT == 0 for entry in by_row for address in entry[:2])
    return torch.tensor(list(zip(*by_row, strict=True)), dtype=torch.long, device=device), is_aligned


if triton is not None:

    @triton.jit(do_not_specialize=["num_keys", "mask_row_stride"])
    def _decode(
        query, key, value, prefix_table, mask, output, scale, num_keys,
        query_row_stride, query_head_stride, key_row_stride, key_head_stride, key_token_stride,
        value_row_stride, value_head_stride, value_token_stride, mask_row_stride, mask_token_stride,
        key_dim: tl.constexpr, value_dim: tl.constexpr, block_dim: tl.constexpr, group_size: tl.constexpr,
        block_heads: tl.constexpr, block_tokens: tl.constexpr, is_aligned: tl.constexpr, is_masked: tl.constexpr,
    ):  # fmt: skip
        """Attend with the query heads of one key/value head of one row."""
        row, kv_head = tl.program_id(0), tl.program_id(1)
        num_rows, num_kv_heads = tl.num_programs(0), tl.num_programs(1)
        heads, dims = tl.arange(0, block_heads), tl.arange(0, block_dim)
        in_group = (heads < group_size)[:, None]
        query_ptrs = (
            query + row * query_row_stride + (kv_head * group_size + heads)[:, None] * query_head_stride + dims[None, :]
        )
        queries = tl.load(query_ptrs, mask=in_group & (dims < key_dim)[None, :], other=0.0)

        row_max = tl.full([block_heads], float("-inf"), tl.float32)
        denominator = tl.zeros([block_heads], tl.float32)
        accumulator = tl.zeros([block_heads, block_dim], tl.float32)
        prefix_length = tl.load(prefix_table + 2 * num_rows + row).to(tl.int32)
        pointer_type = tl.pointer_type(query.dtype.element_ty)
        prefix_key = tl.load(prefix_table + row).to(pointer_type) + kv_head * prefix_length * key_dim
        prefix_value = tl.load(prefix_table + num_rows + row).to(pointer_type) + kv_head * prefix_length * value_dim
        row_max, denominator, accumulator = _accumulate(
            queries, prefix_key, prefix_value, mask, prefix_length, key_dim, value_dim, 0, scale,
            row_max, denominator, accumulator,
            key_dim, value_dim, block_dim, block_tokens, is_aligned, False,
        )  # fmt: skip
        row_max, denominator, accumulator = _accumulate(
            queries, key + row.to(tl.int64) * key_row_stride + kv_head * key_head_stride,
            value + row.to(tl.int64) * value_row_stride + kv_head * value_head_stride, mask + row * mask_row_stride,
            num_keys, key_token_stride, value_token_stride, mask_token_stride, scale,
            row_max, denominator, accumulator,
            key_dim, value_dim, block_dim, block_tokens, False, is_masked,
        )  # fmt: skip
        normalized = (accumulator / denominator[:, None]).to(output.dtype.element_ty)
        output_ptrs = (
            output + (row * num_kv_heads * group_size + kv_head * group_size + heads)[:, None] * value_dim
            + dims[None, :]
        )  # fmt: skip
        tl.store(output_ptrs, normalized, mask=in_group & (dims < value_dim)[None, :])

    @triton.jit
    def _accumulate(
        queries, key, value, mask, num_tokens, key_token_stride, value_token_stride, mask_token_stride, scale,
        row_max, denominator, accumulator,
        key_dim: tl.constexpr, value_dim: tl.constexpr, block_dim: tl.constexpr, block_tokens: tl.constexpr,
        is_aligned: tl.constexpr, is_masked: tl.constexpr,
    ):  # fmt: skip
        """Add `num_tokens` tokens to the running maximum of scores, sum of weights and weighted sum of values."""
        dims = tl.arange(0, block_dim)
        for start in range(0, num_tokens, block_tokens):
            tokens = start + tl.arange(0, block_tokens)
            in_bounds = tokens < num_tokens
            key_ptrs = key + tokens[:, None] * key_token_stride + dims[None, :]
            value_ptrs = value + tokens[:, None] * value_token_stride + dims[None, :]
            if is_aligned:  # which the compiler cannot tell from an address in a table
                key_ptrs, value_ptrs = tl.multiple_of(key_ptrs, (1, 16)), tl.multiple_of(value_ptrs, (1, 16))
            keys = tl.load(key_ptrs, mask=in_bounds[:, None] & (dims < key_dim)[None, :], other=0.0)
            scores = tl.dot(queries, keys.trans(), input_precision="ieee") * scale
            if is_masked:
                bias = tl.load(mask + tokens * mask_token_stride, mask=in_bounds, other=0.0).to(tl.float32)
                scores += bias[None, :]
            scores = tl.where(in_bounds[None, :], scores, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            rescale, weights = tl.exp(row_max - new_max), tl.exp(scores - new_max[:, None])
            values = tl.load(value_ptrs, mask=in_bounds[:, None] & (dims < value_dim)[None, :], other=0.0)
            accumulator = accumulator * rescale[:, None] + tl.dot(
                weights.to(values.dtype), values, input_precision="ieee"
            )
            denominator = denominator * rescale + tl.sum(weights, 1)
            row_max = new_max
        return row_max, denominator, accumulator
