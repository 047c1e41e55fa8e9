"""The page of the command line is what `--help` says, and what that says are the defaults that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from antefix.cli.main import app
from antefix.config import PrefixConfig
from antefix.training import Distillation, Recipe

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
TITLE = "Command line"


def test_the_page_is_written_from_help(tmp_path: Path) -> None:
    """`make commands` writes it anew."""
    written = tmp_path / "commands.md"
    command = [sys.executable, "-W", "ignore", "-m", "typer", "antefix.cli.main", "utils", "docs", "--name", "antefix"]
    subprocess.run([*command, "--title", TITLE, "--output", str(written)], check=True, capture_output=True)
    assert PAGE.read_text() == written.read_text()


@pytest.mark.parametrize(("command", "settings"), [("train", Recipe), ("distill", Distillation)])
def test_help_tells_the_defaults(command: str, settings: type[Any]) -> None:
    whole: Any = typer.main.get_command(app)
    known = {field.name: field.default for cls in (PrefixConfig, settings) for field in fields(cls)}
    told = {}
    for parameter in whole.commands[command].params:
        found = re.search(r"\[default: ([\d.]+|\w+)\]$", getattr(parameter, "help", None) or "")
        if found and isinstance(known.get(parameter.name), int | float | str):
            told[parameter.name] = (found[1], known[parameter.name])
    assert len(told) > 5
    wrong = {name: pair for name, pair in told.items() if type(pair[1])(pair[0]) != pair[1]}
    assert wrong == {}


def test_every_command_has_a_word_on_each_option() -> None:
    whole: Any = typer.main.get_command(app)
    silent = [
        f"{name} {parameter.name}"
        for name, command in whole.commands.items()
        for parameter in command.params
        if not (getattr(parameter, "help", None) or isinstance(parameter, click.Argument))
    ]
    assert silent == []
