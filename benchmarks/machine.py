"""The machine that is measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def processor() -> str:
    """Return the name of the GPU, or of the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
