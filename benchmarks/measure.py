"""Seconds that do not favour whoever runs first, and the memory that a call needs at its peak."""

from __future__ import annotations

import ctypes
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

WARM_UP_ROUNDS = 2
Call = Callable[[], object]


def interleave(calls: Mapping[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """Return median, minimum and maximum seconds of each call.

    After a warm-up, each round makes one call of each, beginning with the next one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP_ROUNDS + rounds):
        names = list(calls)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            calls[name]()
            wait_for_device()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - start)
    return {name: spread(taken) for name, taken in seconds.items()}


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}


def wait_for_device() -> None:
    """Let a GPU finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def keep_memory() -> None:
    """Have the C library keep what is freed for what comes next, until the process ends (mallopt(3))."""
    library, trim_threshold, mmap_max = ctypes.CDLL("libc.so.6"), -1, -4
    library.mallopt(mmap_max, 0)
    library.mallopt(trim_threshold, 2**31 - 1)


def peak_bytes(call: Call) -> int:
    """Return by how much a call, run once before, raises the bytes that PyTorch holds at its peak.

    Those of a GPU, or those of the CPU where there is none; what libraries take for themselves is not among them.
    """
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        call()
    recorded = profile.profiler.kineto_results.events()
    changes: list[int] = [event.nbytes() for event in recorded if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))
