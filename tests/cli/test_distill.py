"""`antefix distill`."""

from __future__ import annotations

import json
from pathlib import Path

from antefix.embedded.records import draw_examples
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


def test_what_is_missing_is_named(invoke: Invoke) -> None:
    result = invoke("distill", "--model", "embedded")
    assert result.exit_code == 1
    assert "lacks 'document'" in result.output
