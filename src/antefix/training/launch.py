"""Which of several processes this is, as `torchrun` and `accelerate launch` number them."""

from __future__ import annotations

import gc
import os

import torch


def is_main_process() -> bool:
    """Return whether this process prints and writes files for all."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Return the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_processes() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_group() -> None:
    """Disconnect the processes, which might otherwise abort when one ends before another."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Whatever DDP holds of the group must be freed first: else PyTorch ends the group's thread while holding
        # Python's lock, for which that thread may be waiting.
        gc.collect()
        torch.distributed.destroy_process_group()
