"""Where the tokens of a prefix lie, against a cache that is written and read token by token."""

from __future__ import annotations

import pytest

from antefix.vllm.slots import heads_of_rank, slots_of


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 16), (5, 33), (16, 32), (31, 48)])
def test_slots_are_where_a_walk_through_the_blocks_comes_by(block_size: int, start: int, stop: int) -> None:
    block_ids = [7 + 5 * number % 53 for number in range(48)]
    walk = [(block, offset) for block in block_ids for offset in range(block_size)]
    positions, slots = slots_of(block_ids, block_size, start, stop)
    assert positions == list(range(start, stop))
    assert [divmod(slot, block_size) for slot in slots] == walk[start:stop]


def test_positions_without_a_block_are_left_out() -> None:
    assert slots_of([0, 4, 0, 9], 2, 1, 8) == ([2, 3, 6, 7], [8, 9, 18, 19])


@pytest.mark.parametrize(("heads", "ranks"), [(8, 1), (8, 2), (8, 8), (2, 4), (1, 4), (2, 8)])
def test_ranks_hold_every_head_equally_often(heads: int, ranks: int) -> None:
    held = [list(range(heads))[heads_of_rank(heads, rank, ranks)] for rank in range(ranks)]
    assert {len(part) for part in held} == {max(1, heads // ranks)}
    flat = [head for part in held for head in part]
    assert flat == sorted(flat)
    assert {flat.count(head) for head in range(heads)} == {max(1, ranks // heads)}
