"""Which of several processes this is, as `torchrun` and `accelerate launch` number them."""

from __future__ import annotations

import gc
import os

import torch


def is_main_process() -> bool:
    """Tell whether this process speaks and writes for all."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Return which of its machine's processes this is, and so which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_processes() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_group() -> None:
    """End what connects the processes, which may otherwise abort when one ends before another."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # What DDP holds of the group must go before it: PyTorch would end the group's thread while holding Python's
        # lock, and that thread may be waiting for it.
        gc.collect()
        torch.distributed.destroy_process_group()
