"""Training that is killed at any moment and resumed ends where it would have ended."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import antefix
from antefix.cli.main import app
from antefix.embedded.records import draw_examples
from antefix.training.checkpoint import TRAINED_NAME

NUM_KILLS = 2  # one of a new training, one of a resumed one


def _arguments(folder: Path, data: Path, *more: str) -> list[str]:
    return [
        "train", "--model", "embedded", "--data", str(data), "--prompt", "{source}\\n=>\\n", "--answer", "{target}",
        "--num-virtual-tokens", "4", "--epochs", "12", "--batch-size", "4", "--output", str(folder), *more,
    ]  # fmt: skip


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "antefix", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _train_here(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def _move_weights(folder: Path) -> None:
    """Add a little to what the newest checkpoint holds of the prefix."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    file = newest / TRAINED_NAME
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) + 0.01 for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    save_file(tensors, file, metadata)


def test_killed_and_resumed_training_has_the_same_curve(tmp_path: Path) -> None:
    """And elsewhere, had its checkpoint been another: what is resumed is what was kept."""
    data, whole, killed, altered = (tmp_path / name for name in ("data.jsonl", "whole", "killed", "altered"))
    data.write_text("".join(json.dumps(row) + "\n" for row in draw_examples("headline", 40, seed=0)))
    _train_here(_arguments(whole, data))
    rng, ended_by = random.Random(0), []
    for number in range(NUM_KILLS):
        process = _start(_arguments(killed, data, *(["--resume"] if number else [])))
        before = set(killed.glob("checkpoint-*"))
        while not set(killed.glob("checkpoint-*")) - before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ended_by.append(process.returncode)
    assert -signal.SIGKILL in ended_by
    shutil.copytree(killed, altered)
    _move_weights(altered)
    last = _start(_arguments(killed, data, "--resume"))
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert "going on from" in errors
    _train_here(_arguments(altered, data, "--resume"))
    curves = [json.loads((folder / "metrics.json").read_text())["train_loss"] for folder in (whole, killed)]
    assert curves[0] == curves[1]
    assert curves[0][-1]["step"] > 100  # where Trainer logs every other step, and may save between two logs
    first, second, other = (antefix.load_prefix(folder / "prefix.safetensors") for folder in (whole, killed, altered))
    assert all(torch.equal(first.keys[path], second.keys[path]) for path in first.keys)
    assert all(torch.equal(first.values[path], second.values[path]) for path in first.values)
    assert not any(torch.equal(first.values[path], other.values[path]) for path in first.values)
