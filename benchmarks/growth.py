"""How cost grows: with the length of a prefix, the rows of a batch, and the number of different prefixes in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.floor import Speed, generation_floor
from benchmarks.measure import interleave
from benchmarks.scenarios import PROMPT, Calls, generation, mixed_batch

NUM_NEW = 8
ROUNDS = 3


@dataclass(frozen=True)
class Growth:
    """One quantity that grows; `build` returns the calls at a value, `floor` the least seconds there."""

    name: str
    label: str
    values: Sequence[int]
    build: Callable[[int], Calls]
    floor: Callable[[Speed, float, int], float]


def _floor(speed: Speed, base_s: float, batch: int, tokens: int, prefixes: int = 1) -> float:
    return generation_floor(speed, base_s, batch, tokens, PROMPT, NUM_NEW, prefixes)


GROWTHS = (
    Growth(
        "length",
        "tokens of the prefix (8 rows)",
        (16, 64, 256, 1024, 4096, 8192),
        lambda tokens: generation(8, tokens, NUM_NEW),
        lambda speed, base_s, tokens: _floor(speed, base_s, 8, tokens),
    ),
    Growth(
        "rows",
        "rows of the batch (512 tokens of prefix)",
        (1, 2, 4, 8, 16, 32, 64),
        lambda batch: generation(batch, 512, NUM_NEW),
        lambda speed, base_s, batch: _floor(speed, base_s, batch, 512),
    ),
    Growth(
        "prefixes",
        "different prefixes in a batch (64 rows, 128 tokens each)",
        (1, 4, 16, 64),
        lambda number: mixed_batch(number, 128, NUM_NEW, rows=64),
        lambda speed, base_s, number: _floor(speed, base_s, 64, 128, number),
    ),
)


def grow(growth: Growth, speed: Speed) -> list[dict[str, Any]]:
    """Return seconds by peer, and the floor, at each value."""
    points = []
    for value in growth.values:
        timings = interleave(growth.build(value), ROUNDS)
        seconds = {name: timing["median"] for name, timing in timings.items()}
        points.append({"value": value, **seconds, "floor": growth.floor(speed, seconds["base"], value)})
        print(f"{growth.name} {value}:", "  ".join(f"{name} {s:.3f} s" for name, s in seconds.items()), flush=True)
    return points
