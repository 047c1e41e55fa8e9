"""Seconds that do not favour whoever runs first, and the memory that a call needs at its peak."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

WARM_UP_ROUNDS = 2
Call = Callable[[], object]


def interleave(calls: Mapping[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """Return median, minimum and maximum seconds of each call: after a warm-up one call of each in turn, by rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            wait_for_device()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_s": statistics.median(taken), "min_s": min(taken), "max_s": max(taken)}
        for name, taken in seconds.items()
    }


def wait_for_device() -> None:
    """Let a GPU finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(call: Call) -> int:
    """Return by how much a call, run once before, raises the memory in use at its peak."""
    call()
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
