"""Groups of examples that belong together, such as all answers to one prompt, and how many groups to hold out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

MAX_HELD_OUT = 200
"""In examples."""
MIN_TO_DRAW_FROM = 10


def group_equal(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the places of equal keys together, in the order in which the keys first occur."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def group_to_draw_from(*choices: Sequence[Hashable]) -> list[list[int]]:
    """Group by the first choice of keys that makes at least `MIN_TO_DRAW_FROM` groups, or else by the last."""
    for keys in choices:
        groups = group_equal(keys)
        if len(groups) >= MIN_TO_DRAW_FROM:
            break
    return groups


def num_held_out(groups: Sequence[Sequence[int]]) -> int:
    """Return how many groups to hold out: a tenth, capped so that they have about `MAX_HELD_OUT` examples."""
    num_examples = max(sum(map(len, groups)), 1)
    return min(len(groups) // 10, max(MAX_HELD_OUT * len(groups) // num_examples, 1))
