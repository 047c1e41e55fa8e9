"""One query a row on a GPU: a single kernel over prefix and sequence, whichever prefix each row has.

Decoding a token is bound by kernel launches: calls for the two parts, for each prefix of a batch, and for merging them
would take longer than the arithmetic. This kernel reads a row's prefix in place, by its address, and goes on with the
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
except ImportError:  # PyTorch for a CPU comes without
    triton = None

_MOST_TOKENS = 8192
"""A row is one program's work for each key/value head: what is longer is for kernels that split it."""
_ALIGNED = 16
"""Bytes that are read in one piece where all begins at multiples of them."""
_BLOCK, _WARPS, _STAGES = 8192, 4, 3
"""How many numbers of keys a program reads at once, by how many warps, and how many blocks are on their way."""


def can_decode(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefixes: Sequence[tuple[Tensor, Tensor]]
) -> bool:
    """Return whether the kernel takes such tensors: one query a row, without gradients, that reads not too much."""
    if triton is None or query.shape[2] != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    longest = key.shape[2] + max(prefix.shape[1] for prefix, _ in prefixes)
    one_mask = mask is None or mask.shape[1] == 1
    as_read = key.stride(3) == value.stride(3) == query.stride(3) == 1
    prefixes_as_read = all(keys.is_contiguous() and values.is_contiguous() for keys, values in prefixes)
    return longest <= _MOST_TOKENS and one_mask and as_read and prefixes_as_read


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefixes: Sequence[tuple[Tensor, Tensor]],
    rows: Sequence[int],
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Return `(batch, head, 1, value_dim)`: what `shared_attention` returns for one query a row."""
    batch, heads, _, key_dim = query.shape
    kv_heads, value_dim = key.shape[1], value.shape[3]
    lying = tuple((keys.data_ptr(), values.data_ptr(), keys.shape[1]) for keys, values in prefixes)
    table, is_aligned = _table(query.device, lying, tuple(rows))
    is_aligned = is_aligned and key_dim * query.itemsize % _ALIGNED == value_dim * query.itemsize % _ALIGNED == 0
    output = query.new_empty(batch, 1, heads, value_dim).transpose(1, 2)
    group = heads // kv_heads
    wide = triton.next_power_of_2(max(key_dim, value_dim, 16))
    with torch.cuda.device_of(query):
        _decode[(batch, kv_heads)](
            query, key, value, table, query if mask is None else mask, output, scale, key.shape[2],
            query.stride(0), query.stride(1), *key.stride()[:3], *value.stride()[:3],
            0 if mask is None else mask.stride(0), 0 if mask is None else mask.stride(3),
            key_dim=key_dim, value_dim=value_dim, wide=wide, group=group,
            grouped=max(16, triton.next_power_of_2(group)), at_once=min(128, _BLOCK // wide),
            is_aligned=is_aligned, is_masked=mask is not None, num_warps=_WARPS, num_stages=_STAGES,
        )  # fmt: skip
    return output


@functools.lru_cache(maxsize=4096)
def _table(device: torch.device, lying: tuple[tuple[int, int, int], ...], rows: tuple[int, ...]) -> tuple[Tensor, bool]:
    """Return `(3, row)`: where the keys and the values of each row's prefix lie, and how many tokens it has.

    It says nothing but addresses, so it holds for whatever lies there, and is copied to a GPU once for many tokens.
    The second says whether all begin where bytes can be read in pieces.
    """
    of_rows = [lying[row] if row >= 0 else (0, 0, 0) for row in rows]
    is_aligned = all(address % _ALIGNED == 0 for row in of_rows for address in row[:2])
    return torch.tensor(list(zip(*of_rows, strict=True)), dtype=torch.long, device=device), is_aligned


if triton is not None:

    @triton.jit(do_not_specialize=["keys", "mask_row"])
    def _decode(
        query, key, value, table, mask, output, scale, keys,
        query_row, query_head, key_row, key_head, key_token, value_row, value_head, value_token, mask_row, mask_token,
        key_dim: tl.constexpr, value_dim: tl.constexpr, wide: tl.constexpr, group: tl.constexpr,
        grouped: tl.constexpr, at_once: tl.constexpr, is_aligned: tl.constexpr, is_masked: tl.constexpr,
    ):  # fmt: skip
        """Attend with the query heads of one key/value head of one row."""
        row, head = tl.program_id(0), tl.program_id(1)
        rows, heads = tl.num_programs(0), tl.num_programs(1)
        members, dims = tl.arange(0, grouped), tl.arange(0, wide)
        own = (members < group)[:, None]
        at = query + row * query_row + (head * group + members)[:, None] * query_head + dims[None, :]
        queries = tl.load(at, mask=own & (dims < key_dim)[None, :], other=0.0)

        most = tl.full([grouped], float("-inf"), tl.float32)
        weight = tl.zeros([grouped], tl.float32)
        total = tl.zeros([grouped, wide], tl.float32)
        number = tl.load(table + 2 * rows + row).to(tl.int32)
        kind = tl.pointer_type(query.dtype.element_ty)
        prefix_key = tl.load(table + row).to(kind) + head * number * key_dim
        prefix_value = tl.load(table + rows + row).to(kind) + head * number * value_dim
        most, weight, total = _read(
            queries, prefix_key, prefix_value, mask, number, key_dim, value_dim, 0, scale, most, weight, total,
            key_dim, value_dim, wide, at_once, is_aligned, False,
        )  # fmt: skip
        most, weight, total = _read(
            queries, key + row.to(tl.int64) * key_row + head * key_head, value + row.to(tl.int64) * value_row
            + head * value_head, mask + row * mask_row, keys, key_token, value_token, mask_token, scale, most, weight,
            total, key_dim, value_dim, wide, at_once, False, is_masked,
        )  # fmt: skip
        answer = (total / weight[:, None]).to(output.dtype.element_ty)
        at = output + (row * heads * group + head * group + members)[:, None] * value_dim + dims[None, :]
        tl.store(at, answer, mask=own & (dims < value_dim)[None, :])

    @triton.jit
    def _read(
        queries, key, value, mask, number, key_token, value_token, mask_token, scale, most, weight, total,
        key_dim: tl.constexpr, value_dim: tl.constexpr, wide: tl.constexpr, at_once: tl.constexpr,
        is_aligned: tl.constexpr, is_masked: tl.constexpr,
    ):  # fmt: skip
        """Take so many more tokens into account: the largest score so far, the sum of weights, that of values."""
        dims = tl.arange(0, wide)
        for start in range(0, number, at_once):
            tokens = start + tl.arange(0, at_once)
            there = tokens < number
            keys_at = key + tokens[:, None] * key_token + dims[None, :]
            values_at = value + tokens[:, None] * value_token + dims[None, :]
            if is_aligned:  # what an address from a table does not tell
                keys_at, values_at = tl.multiple_of(keys_at, (1, 16)), tl.multiple_of(values_at, (1, 16))
            keys = tl.load(keys_at, mask=there[:, None] & (dims < key_dim)[None, :], other=0.0)
            scores = tl.dot(queries, keys.trans(), input_precision="ieee") * scale
            if is_masked:
                added = tl.load(mask + tokens * mask_token, mask=there, other=0.0).to(tl.float32)
                scores += added[None, :]
            scores = tl.where(there[None, :], scores, float("-inf"))
            larger = tl.maximum(most, tl.max(scores, 1))
            kept, weights = tl.exp(most - larger), tl.exp(scores - larger[:, None])
            values = tl.load(values_at, mask=there[:, None] & (dims < value_dim)[None, :], other=0.0)
            total = total * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            weight = weight * kept + tl.sum(weights, 1)
            most = larger
        return most, weight, total
