"""Training that is killed at any moment and resumed ends where it would have ended."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import antefix
from antefix.embedded.records import draw_examples

NUM_KILLS = 3


def _train(folder: Path, data: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-W", "ignore", "-m", "antefix", "train", "--model", "embedded", "--data", str(data),
        "--prompt", "{source}\\n=>\\n", "--answer", "{target}", "--num-virtual-tokens", "4", "--epochs", "6",
        "--output", str(folder), *more,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def test_killed_and_resumed_training_has_the_same_curve(tmp_path: Path) -> None:
    data, whole, killed = tmp_path / "data.jsonl", tmp_path / "whole", tmp_path / "killed"
    data.write_text("".join(json.dumps(row) + "\n" for row in draw_examples("headline", 200, seed=0)))
    _end(_train(whole, data))
    rng, ended_by = random.Random(0), []
    for number in range(NUM_KILLS):
        process = _train(killed, data, *(["--resume"] if number else []))
        before = set(killed.glob("checkpoint-*"))
        while not set(killed.glob("checkpoint-*")) - before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ended_by.append(process.returncode)
    assert "going on from" in _end(_train(killed, data, "--resume"))
    assert -signal.SIGKILL in ended_by
    curves = [json.loads((folder / "metrics.json").read_text())["train_loss"] for folder in (whole, killed)]
    assert curves[0] == curves[1]
    first, second = (antefix.load_prefix(folder / "prefix.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first.keys[path], second.keys[path]) for path in first.keys)
    assert all(torch.equal(first.values[path], second.values[path]) for path in first.values)
