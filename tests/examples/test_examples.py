"""Every script in `examples` runs, as a reader would run it, and prints the result it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, tmp_path: Path) -> str:
    environment = {**os.environ, "COLUMNS": "120"}
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
    print(result.stdout)
    return result.stdout


def test_every_example_says_how_long_it_takes() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert re.search(r"^Takes .* on 2 cores", path.read_text(), re.MULTILINE), path.name


def test_table_to_text(tmp_path: Path) -> None:
    printed = run("table_to_text.py", tmp_path)
    (row,) = re.findall(
        r"^\| exact match \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \|$", printed, re.MULTILINE
    )
    bare, _, prefix, _ = map(float, row)
    assert prefix > 80 > bare + 40


def test_classify_text(tmp_path: Path) -> None:
    printed = run("classify_text.py", tmp_path)
    before, after = map(float, re.findall(r"training: accuracy ([\d.]+)%", printed))
    assert after > 80 > before + 30
