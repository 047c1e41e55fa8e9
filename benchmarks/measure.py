"""Seconds that do not favour whoever runs first, and the memory that a call needs at its peak."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

WARM_UP_ROUNDS = 2
MEMORY_READINGS = 5
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


def peak_bytes(call: Call) -> dict[str, float]:
    """Return by how much a call, run once before, raises the memory in use at its peak: median, minimum, maximum."""
    call()
    return spread([_rise(call) for _ in range(MEMORY_READINGS)])


def _rise(call: Call) -> int:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
