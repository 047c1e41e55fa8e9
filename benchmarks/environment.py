"""What figures depend on, kept beside them."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.machine import processor


def environment(threads: int) -> dict[str, Any]:
    """Return versions, processor, threads and commit."""
    return {
        "versions": {name: version(name) for name in ("antefix", "torch", "transformers", "peft")},
        "python": platform.python_version(),
        "processor": processor(),
        "dtype": "bf16" if torch.cuda.is_available() else "fp32",
        "threads": threads,
        "commit": _commit(),
    }


def _commit() -> str:
    """Return the commit, as dirty where code has changed since; results change while they are written."""
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/benchmarks", ":!/benchmarks/results"
    )
    return _git("describe", "--always") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
