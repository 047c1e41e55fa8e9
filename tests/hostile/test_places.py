"""Places that cannot be written to: one sentence, the old file intact, and nothing beside it."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import antefix
from antefix.initialize import random_prefix
from antefix.sites import Site

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def _obey_permissions() -> None:
    """Take from this process, where it is root's, what would let it write where nobody may; Linux alone."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def _write_little() -> None:
    """End a write in its middle, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def _compose(path: Path, prepare: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """Write a prefix, followed by itself, over its own file."""
    command = [sys.executable, "-W", "ignore", "-m", "antefix", "compose", path, path, "--output", path]
    return subprocess.run(list(map(str, command)), preexec_fn=prepare, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("prepare", "mode"), [(_obey_permissions, 0o500), (_write_little, 0o700)])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, prepare: Callable[[], None], mode: int) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(random_prefix([Site("layer", "decoder", 0, 4, 64, 64)], 2), path)
    before = path.read_bytes()
    os.chmod(tmp_path, mode)
    done = _compose(path, prepare)
    os.chmod(tmp_path, 0o700)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
