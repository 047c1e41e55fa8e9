"""Two real processes learn what one learns from the same batches: DDP and FSDP2, by torchrun and accelerate launch."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import antefix
from antefix.embedded.records import draw_examples

ROOT = Path(__file__).parents[2]
SCRIPT = "tests/ecosystem/train_a_little.py"
LOSSES = 1e-5
"""Sums over two halves of a batch are rounded otherwise than those over the whole."""
PREFIX = 1e-3
"""AdamW divides by the size of gradients, and so enlarges their rounding where they are small."""


def torchrun() -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]


def accelerate(*options: str) -> list[str]:
    usual = [
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
    ]
    return [sys.executable, "-m", "accelerate.commands.launch", *usual, *options]


def ddp() -> list[str]:
    return accelerate("--multi_gpu")  # which on a machine without any means several processes


def fsdp() -> list[str]:
    return accelerate("--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP")


def run(*command: str) -> str:
    """Run a command in the project's folder and return what it says on stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT, check=False
    )
    assert finished.returncode == 0, finished.stderr[-5000:]
    return finished.stderr


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "losses.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of what one process learns: a plain prefix, and one with an MLP and a head."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("embedding", "mlp")}
    for kind, folder in folders.items():
        run(sys.executable, SCRIPT, str(folder), kind)
    return folders


def assert_same(folder: Path, expected: Path) -> None:
    assert losses(folder) == pytest.approx(losses(expected), abs=LOSSES)
    assert len(losses(folder)) == 6
    (path,) = folder.glob("*.safetensors")
    saved, single = antefix.load_prefix(path), antefix.load_prefix(expected / "prefix.safetensors")
    for site, key in single.keys.items():
        torch.testing.assert_close(saved.keys[site], key, atol=PREFIX, rtol=0)
    for name, tensor in single.modules.items():
        torch.testing.assert_close(saved.modules[name], tensor, atol=PREFIX, rtol=0)


@pytest.mark.parametrize(
    ("launcher", "kind"), [(torchrun, "embedding"), (ddp, "mlp"), (fsdp, "embedding")], ids=["torchrun", "ddp", "fsdp"]
)
def test_two_processes_learn_what_one_does(launcher, kind, alone, tmp_path) -> None:
    run(*launcher(), SCRIPT, str(tmp_path), kind)
    assert_same(tmp_path, alone[kind])


def test_sharded_training_keeps_no_base_weights_and_goes_on(alone: dict[str, Path], tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    run(*fsdp(), SCRIPT, str(whole), "mlp")
    assert_same(whole, alone["mlp"])
    checkpoint = whole / "checkpoint-3"
    assert {path.name for path in checkpoint.iterdir()} == {
        "prefix.safetensors", "trained.safetensors", "optimizer_0", "scheduler.pt", "rng_state_0.pth",
        "rng_state_1.pth", "trainer_state.json",
    }  # fmt: skip
    shutil.copytree(checkpoint, again / "checkpoint-3")
    run(*fsdp(), SCRIPT, str(again), "mlp", str(again / "checkpoint-3"))
    assert losses(again) == losses(whole)


def test_an_adapter_beside_a_sharded_prefix_is_saved_whole(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason='PEFT is not installed: pip install "antefix[peft]"')
    run(sys.executable, SCRIPT, str(tmp_path / "one"), "lora")
    run(*fsdp(), SCRIPT, str(tmp_path / "two"), "lora")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=LOSSES)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=PREFIX, rtol=0)


@pytest.fixture(scope="module")
def command_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Return an `antefix train` that lacks its batch size and output, and the folder of what one process makes."""
    folder = tmp_path_factory.mktemp("command")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in draw_examples("headline", 20, seed=3)))
    settings = ["train", "--model", "embedded", "--data", str(data), "--prompt", "{source}\n", "--answer", "{target}"]
    settings += ["--epochs", "2", "--num-virtual-tokens", "4", "--init", "random"]
    run(sys.executable, "-m", "antefix", *settings, "--batch-size", "6", "--output", str(folder / "one"))
    return settings, folder / "one"


@pytest.mark.parametrize("launcher", [torchrun, ddp])
def test_the_command_runs_under_launchers(launcher, command_alone, tmp_path) -> None:
    """`antefix train`: the same losses as alone, and one process that writes."""
    settings, alone = command_alone
    said = run(*launcher(), "-m", "antefix", *settings, "--batch-size", "3", "--output", str(tmp_path / "two"))
    assert said.count("held out") == 1  # so one process speaks and writes
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (alone, tmp_path / "two"))
    curves = [[log["loss"] for log in metrics["train_loss"]] for metrics in (one, two)]
    assert curves[1] == pytest.approx(curves[0], abs=LOSSES)
    assert len(set(curves[0])) == 6
    assert two["after"]["loss"] == pytest.approx(one["after"]["loss"], abs=PREFIX)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in alone.iterdir()}
