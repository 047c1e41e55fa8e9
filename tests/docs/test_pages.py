"""What pages quote of the code is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer
import yaml
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.report import write_page

import antefix
from antefix.cli.main import app
from antefix.training import Recipe

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))


def test_troubleshooting_quotes_messages_that_there_are() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [
        part for line in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE) for part in re.findall(r"`(.+?)`", line)
    ]
    joined = re.sub(r'"\s*\n\s*f?"', "", SOURCE)
    assert len(quoted) > 12
    assert [message for message in quoted if message not in joined] == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_ladder_is_the_one_that_is_checked(page: str) -> None:
    (layers,) = re.findall(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    rungs = set(re.findall(r"\w+", layers)) - {"__main__"}
    text = (ROOT / page).read_text()
    assert {rung for rung in rungs if f"`{rung}`" not in text} == set()


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    errors = {name for name in antefix.__all__ if name.endswith("Error")}
    listed = set(re.findall(r"^::: antefix\.(\w+)$", page, re.MULTILINE))
    assert listed - {"errors"} == set(antefix.__all__) - errors


def test_the_citation_has_this_version() -> None:
    assert f"version: {antefix.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("page", ["recipes.md", "training.md"])
def test_recipes_can_be_read(page: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        Recipe.from_settings(yaml.safe_load(block))


def test_commands_in_pages_have_the_options_that_there_are() -> None:
    known = {name: _options(command) for name, command in typer.main.get_command(app).commands.items()}  # type: ignore[attr-defined]
    found = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"):
        text = page.read_text().replace("\\\n", " ")
        for name, arguments in re.findall(r"(?:^(?:\$ )?|`|-m )antefix (\w+)([^\n`]*)", text, re.MULTILINE):
            if name == "serve":
                continue  # takes vLLM's options, too
            options = set(re.findall(r"(?<!\S)--[\w-]+", arguments))
            assert options <= known[name], f"{page.name}: antefix {name}{arguments}"
            found += 1
    assert found > 20


def _options(command: click.Command) -> set[str]:
    named = [option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)]
    return {option for option in named if option.startswith("--")} | {"--help"}


def test_the_quality_page_has_the_figures_that_there_are(tmp_path: Path) -> None:
    write_page(tmp_path / "quality.md", Ledger())
    assert (tmp_path / "quality.md").read_text() == (ROOT / "docs" / "quality.md").read_text()
