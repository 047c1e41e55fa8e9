"""`antefix distill`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from antefix.cli import distill as cli
from antefix.cli.distill import print_result
from antefix.embedded.records import draw_examples
from antefix.training import Distillation, DistillationResult
from antefix.training.distillation.run import folder_of
from tests.cli.conftest import Invoke


def test_it_says_how_near_the_prefix_comes_and_where_it_lies(invoke: Invoke, tmp_path: Path) -> None:
    document, asked = tmp_path / "style.txt", tmp_path / "asked.jsonl"
    document.write_text("style: headline\n")
    asked.write_text("".join(json.dumps(row) + "\n" for row in draw_examples("headline", 48, seed=3)))
    (tmp_path / "recipe.yaml").write_text("model: embedded\nprefix:\n  num_virtual_tokens: 8\nepochs: 4\n")
    options = ["--recipe", tmp_path / "recipe.yaml", "--document", document, "--data", asked, "--epochs", 1]
    output = ["--prompt", "{source}\\n=>\\n", "--output", tmp_path / "run"]
    result = invoke("distill", *options, *output)
    assert result.exit_code == 0, result.output
    assert "KL from document in context" in result.output
    assert "the teacher saw 100% of the document" in result.output
    assert (tmp_path / "run" / "prefix.safetensors").is_file()
    report = json.loads((tmp_path / "run" / "distillation.json").read_text())
    assert report["settings"]["epochs"] == 1.0
    assert report["settings"]["prompt"] == "{source}\n=>\n"
    again = invoke("distill", *options, *output)
    assert again.exit_code == 1
    assert "holds a distillation already" in again.output


def test_lessons_about_chunks_are_held_against_their_chunk(invoke: Invoke, tmp_path: Path) -> None:
    document = tmp_path / "records.txt"
    document.write_text("".join(f"{row['source']}\n" for row in draw_examples("record", 8, seed=5)))
    study = ["--kinds", "note", "--num-lessons", 48, "--max-new-tokens", 16, "--epochs", 1]
    result = invoke("distill", "--model", "embedded", "--document", document, *study, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "KL from chunk in context" in result.output
    assert "document in context" not in result.output


@pytest.mark.parametrize(
    ("document", "advice"),
    [
        (0.5, "none; train it longer."),
        (3.0, "and so is the document in context"),
        (None, "train it longer."),
    ],
)
def test_a_prefix_that_is_worse_than_none_is_said_to_be(
    document: float | None, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = {"base": {"loss": 1.0}, "prefix": {"loss": 2.0}}
    if document is not None:
        questions["document"] = {"loss": document}
    size = {"tokens": 9, "bytes": 9}
    report = {
        "document": size,
        "prefix": size,
        "teacher": {"tokens_at_once": 9, "share_seen": 1.0},
        "lessons": {"usable": 1, "discarded": 0},
        "seconds": {"study": 1.0, "training": 1.0},
    }
    console = Console(width=200)
    print_result(DistillationResult(Path("p"), Path("r"), None, {**report, "questions": questions}), console)
    out = capsys.readouterr().out
    assert "warning: on questions the prefix is worse than none" in out
    assert advice in out
    better = {"base": {"loss": 2.0}, "prefix": {"loss": 1.0}}
    print_result(DistillationResult(Path("p"), Path("r"), None, {**report, "questions": better}), console)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("is_begun", [False, True])
def test_an_interrupt_promises_what_there_is(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    def interrupt(settings: Distillation, *_: object) -> None:
        if is_begun:
            folder_of(settings).begin()
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "distill_document", interrupt)
    result = invoke("distill", "--model", "embedded", "--document", "d.txt", "--output", str(tmp_path / "run"))
    assert result.exit_code == 130
    assert ("--resume goes on from here" in result.stderr) == is_begun
    assert "stopped: interrupted" in result.stderr


def test_what_is_missing_is_named(invoke: Invoke) -> None:
    result = invoke("distill", "--model", "embedded")
    assert result.exit_code == 1
    assert "lacks 'document'" in result.output
