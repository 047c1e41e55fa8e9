"""What figures depend on, kept beside them: versions, the machine, the commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment(threads: int) -> dict[str, Any]:
    """Return versions, processor, threads and commit."""
    return {
        "versions": {name: version(name) for name in ("antefix", "torch", "transformers", "peft")},
        "python": platform.python_version(),
        "processor": processor(),
        "dtype": "bf16" if torch.cuda.is_available() else "fp32",
        "threads": threads,
        "commit": commit(),
    }


def processor() -> str:
    """Return the name of the GPU, or of the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """Return the commit, as dirty where code has changed since; results change while they are written."""
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/benchmarks", ":!/benchmarks/results"
    )
    return _git("describe", "--always") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
