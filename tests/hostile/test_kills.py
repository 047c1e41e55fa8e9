"""A process killed while it saves: the path holds the old prefix or the new one, whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import antefix
from antefix.initialize import random_prefix
from antefix.sites import Site

NUM_KILLS = 200
SAVER = """
import os, sys, torch, antefix
from antefix.initialize import random_prefix
from antefix.sites import Site
sites = [Site(f"layer.{number}", "decoder", number, 4, 64, 64) for number in range(4)]
torch.manual_seed(0)
prefixes = [random_prefix(sites, 64) for _ in range(2)]
print("ready", flush=True)
for line in sys.stdin:
    prefixes.reverse()  # however soon it is killed, both are saved in the end
    pid = os.fork()
    if pid == 0:
        for prefix in prefixes * 1000:
            antefix.save_prefix(prefix, sys.argv[1])
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


def saved_at(path: Path) -> int | None:
    """Return when a file was put there, in nanoseconds, or None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    sites = [Site(f"layer.{number}", "decoder", number, 4, 64, 64) for number in range(4)]
    torch.manual_seed(0)
    known = [random_prefix(sites, 64).content_hash() for _ in range(2)]
    rng, seen = random.Random(0), set()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SAVER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        assert parent.stdout.readline() == "ready\n"
        for _ in range(NUM_KILLS):
            before = saved_at(path)
            print("go", file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            while saved_at(path) == before:
                pass
            time.sleep(rng.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "gone\n"
            seen.add(antefix.load_prefix(path).content_hash())
        parent.stdin.close()
    assert seen == set(known)
