"""The README, step by step as a newcomer takes it: in an empty folder, with antefix installed from its wheel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import antefix
from tests.release.conftest import ROOT

README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()


def commands(page: str) -> list[str]:
    """Return what a page shows behind its prompts."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def shown(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Run the commands of the README in an empty folder; return it and what each has shown."""
    folder = tmp_path_factory.mktemp("newcomer")
    where = run([sys.executable, "-c", "import antefix; print(antefix.__file__)"], folder, installed)
    assert str(ROOT) not in where
    return folder, {line: run(["bash", "-c", line], folder, installed) for line in commands(README)}


def test_the_demo_learns_two_forms_and_shows_them(shown: tuple[Path, dict[str, str]]) -> None:
    folder, (printed, *_) = shown[0] / "antefix-demo", shown[1].values()
    for form in ("headline", "letter"):
        assert antefix.load_prefix(folder / form / "prefix.safetensors").num_virtual_tokens == 32
        metrics = json.loads((folder / form / "metrics.json").read_text())
        print(f"demo, {form}: {metrics['before']} -> {metrics['after']}")
        assert metrics["after"]["loss"] < 0.5 * metrics["before"]["loss"]
        assert metrics["after"]["exact_match"] >= 0.8 > metrics["before"]["exact_match"] + 0.3
        assert f"antefix-demo/{form}/prefix.safetensors" in printed
    for text in ("held-out score", "prefix A:", "prefix B:", "antefix generate --prefix"):
        assert text in printed


def test_the_commands_do_what_the_readme_says(shown: tuple[Path, dict[str, str]]) -> None:
    folder, printed = shown
    assert [line.split()[1] for line in printed] == ["demo", "train", "evaluate", "inspect", "generate"]
    assert (folder / "runs" / "letter" / "inspection" / "inspection.json").is_file()
    assert list(printed.values())[-1].startswith("Dear Danora Mokins")


def test_the_code_runs_on_what_the_commands_left(shown: tuple[Path, dict[str, str]], installed: dict[str, str]) -> None:
    code = "".join(re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
    letter, headline, bare = run([sys.executable, "-W", "ignore", "-c", code], shown[0], installed).splitlines()[:3]
    assert letter.startswith("Dear Danora Mokins")
    assert len({letter, headline, bare}) == 3


def test_the_quickstart_shows_the_same_commands() -> None:
    assert commands(QUICKSTART) == commands(README)
