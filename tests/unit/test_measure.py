"""The benchmark's own measure of memory, on calls whose bytes can be counted by hand."""

from __future__ import annotations

import torch
from benchmarks.measure import peak_bytes

MEGABYTE = 2**20


def test_peak_counts_what_is_held_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            first = torch.ones(2 * MEGABYTE, dtype=torch.uint8)
            second = torch.ones(MEGABYTE, dtype=torch.uint8)
            del first, second

    assert peak_bytes(call) == 3 * MEGABYTE


def test_peak_does_not_count_what_was_held_before() -> None:
    held = torch.ones(8 * MEGABYTE, dtype=torch.uint8)
    assert peak_bytes(held[:MEGABYTE].clone) == MEGABYTE
