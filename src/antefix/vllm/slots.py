"""Where the tokens of a prefix lie in a paged cache, and which of its heads a tensor-parallel rank holds."""

from __future__ import annotations

from collections.abc import Sequence

NULL_BLOCK = 0
"""vLLM's block for positions that nothing will read again."""


def slots_of(block_ids: Sequence[int], block_size: int, start: int, stop: int) -> tuple[list[int], list[int]]:
    """Return the positions from `start` to `stop` that have a block, and the slot of each in the cache.

    `block_ids` are the request's blocks in the order of its positions; a slot counts tokens from the cache's beginning.
    """
    positions = [p for p in range(start, stop) if block_ids[p // block_size] != NULL_BLOCK]
    return positions, [block_ids[p // block_size] * block_size + p % block_size for p in positions]


def heads_of_rank(num_key_value_heads: int, rank: int, num_ranks: int) -> slice:
    """Return the heads that a rank holds: an equal share, or one, repeated, where there are more ranks than heads."""
    if num_ranks > num_key_value_heads:
        head = rank * num_key_value_heads // num_ranks
        return slice(head, head + 1)
    share = num_key_value_heads // num_ranks
    return slice(rank * share, (rank + 1) * share)
