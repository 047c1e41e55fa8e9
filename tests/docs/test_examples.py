"""Every script in `examples` runs as its header says, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    """Run an example and return what it prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_accelerate_peft() -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    printed = run("accelerate_peft.py")
    assert "answers equal: True" in printed
    assert "one training step" in printed
