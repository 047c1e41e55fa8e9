"""Every script in `examples` runs, as a reader would run it, and prints the result it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=127.0.0.1:0",
]


def run(name: str, tmp_path: Path, *arguments: Path, launcher: list[str] | None = None) -> str:
    """Run an example in an empty folder and return what it prints."""
    result = subprocess.run(
        [*(launcher or [sys.executable]), str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
    print(result.stdout)
    return result.stdout


def shares(printed: str) -> list[float]:
    """Return all percentages that were printed."""
    return [float(share) for share in re.findall(r"([\d.]+)%", printed)]


def test_every_example_says_how_long_it_takes_and_is_run_here() -> None:
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert re.search(r"Takes\s.*on\s2\scores", path.read_text(), re.DOTALL), path.name
        assert f'run("{path.name}"' in tests


def test_table_to_text(tmp_path: Path) -> None:
    printed = run("table_to_text.py", tmp_path)
    (row,) = re.findall(r"^\| exact match \|(.*)$", printed, re.MULTILINE)
    bare, _, prefix, _ = shares(row)
    assert prefix > 80 > bare + 40


def test_british_phonemes(shared: Path, tmp_path: Path) -> None:
    printed = run("british_phonemes.py", tmp_path, shared / "models" / "bart-g2p-us", shared / "data" / "g2p_gb")
    before, after = shares(printed)
    assert after > before + 2


def test_classify_text(tmp_path: Path) -> None:
    printed = run("classify_text.py", tmp_path)
    before, after = map(float, re.findall(r"training: accuracy ([\d.]+)%", printed))
    assert after > 80 > before + 30


def test_sft_with_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason='TRL is not installed: pip install "antefix[trl]"')
    before, after = shares(run("sft_with_trl.py", tmp_path))
    assert after > before + 40


def test_dpo_without_a_reference_copy(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason='TRL is not installed: pip install "antefix[trl]"')
    printed = run("dpo_without_a_reference_copy.py", tmp_path)
    assert "parameters of the reference: 0 bytes" in printed
    before, after = shares(printed)
    assert after > before + 20


def test_two_processes(tmp_path: Path) -> None:
    losses = {}
    for processes, launcher in ((1, None), (2, TORCHRUN)):
        printed = run("two_processes.py", tmp_path, launcher=launcher)
        assert f"{processes} process(es)" in printed
        assert "saved: prefix.safetensors" in printed
        (listed,) = re.findall(r"loss by epoch: (.*)", printed)
        losses[processes] = [float(loss) for loss in listed.split(", ")]
    assert len(losses[1]) == 4
    # AdamW enlarges the rounding of sums over halves; training goes the same way.
    assert losses[2] == pytest.approx(losses[1], abs=1e-3)


def test_accelerate_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason='PEFT is not installed: pip install "antefix[peft]"')
    printed = run("accelerate_peft.py", tmp_path)
    assert "answers equal: True" in printed
    assert "one training step" in printed


def test_prefix_beside_lora(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason='PEFT is not installed: pip install "antefix[peft]"')
    base, _, both = shares(run("prefix_beside_lora.py", tmp_path))
    assert both > base + 50
