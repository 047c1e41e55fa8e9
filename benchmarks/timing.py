"""Timing that does not favour whoever runs first: after a warm-up, one call of each peer in turn, round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

WARM_UP_ROUNDS = 2


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Return median, minimum and maximum seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_s": statistics.median(taken), "min_s": min(taken), "max_s": max(taken)}
        for name, taken in seconds.items()
    }
