"""Asynchronous scheduling on a CPU, where vLLM turns it off because there is nothing to gain.

Its scheduler, its queue of batches and its runner are the real ones; only CUDA's streams and events, which would order
copies on a device, are stood in for by ones that have nothing to order.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform


class _NothingToOrder:
    """A stream or an event of a device whose work is done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device("cpu")

    def nothing(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, there being nothing to wait for."""

    record = synchronize = wait_stream = wait_event = nothing


def schedule_asynchronously() -> None:
    """Let the engines of this process schedule a step before they have heard of the last."""
    torch.cuda.Stream = torch.cuda.Event = _NothingToOrder  # type: ignore[misc, assignment]
    torch.cuda.current_stream = _NothingToOrder  # type: ignore[assignment]
    torch.cuda.stream = lambda stream: nullcontext()  # type: ignore[assignment, misc]
    update = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check_and_update_config(cls: type[CpuPlatform], vllm_config: VllmConfig) -> None:
        update(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)  # type: ignore[assignment]
