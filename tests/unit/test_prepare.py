"""Which examples are held out where the recipe names no others."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from antefix.training import Recipe
from antefix.training.prepare import prepare


def held_out(data: Path, seed: int) -> list[int]:
    recipe = Recipe("embedded", str(data), "{number}", "{answer}", seed=seed)
    prepared = prepare(recipe, Console(quiet=True))
    trained, held = (
        [int(example.prompt) for example in part.examples] for part in (prepared.trained, prepared.held_out)
    )
    assert sorted(trained + held) == list(range(100))
    return held


def test_data_with_a_period_is_held_out_fairly(tmp_path: Path) -> None:
    """Every tenth row has the same answer, and so would all that are held out by place."""
    data = tmp_path / "data.jsonl"
    rows = ({"number": number, "answer": "tenth" if number % 10 == 9 else "other"} for number in range(100))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = held_out(data, seed=0)
    assert len(drawn) == 10
    assert len({number % 10 for number in drawn}) > 1
    assert drawn == held_out(data, seed=0) != held_out(data, seed=1)


def test_answers_to_one_prompt_are_held_out_together(tmp_path: Path) -> None:
    """Else a prefix would be scored by what it was trained on."""
    data = tmp_path / "data.jsonl"
    rows = [{"number": number // 5, "answer": f"answer {number}"} for number in range(100)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(Recipe("embedded", str(data), "{number}", "{answer}"), Console(quiet=True))
    trained, held = ({example.prompt for example in part.examples} for part in (prepared.trained, prepared.held_out))
    assert (len(trained), len(held)) == (18, 2)
    assert not trained & held
    assert len(prepared.held_out.examples) == 10


def test_one_prompt_for_all_keeps_nothing_apart(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"answer": f"answer {number}"}) + "\n" for number in range(100)))
    console = Console(record=True, width=200, file=io.StringIO())
    prepared = prepare(Recipe("embedded", str(data), "Say:", "{answer}"), console)
    assert "warning: all prompts are 'Say:'; write a field of the data in their template" in console.export_text()
    assert (len(prepared.trained.examples), len(prepared.held_out.examples)) == (90, 10)


def test_prompts_are_cut_for_the_longest_answer_that_is_written(tmp_path: Path) -> None:
    """The embedded model has 1,024 positions; an answer to a short prompt may be as long as the longest expected."""
    data = tmp_path / "data.jsonl"
    rows = [{"source": "word " * 1100, "target": "a"}, {"source": "word", "target": "many words " * 20}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 5))
    recipe = Recipe(
        "embedded", str(data), "{source}", "{target}", eval_data=str(data), truncation=True, exact_match=True
    )
    prepared = prepare(recipe, Console(quiet=True))
    longest = max(len(tokens.answer) for tokens in prepared.held_out.tokens)
    assert max(len(tokens.prompt) for tokens in prepared.held_out.tokens) + longest + 32 == 1024
    assert max(len(tokens.prompt) for tokens in prepared.trained.tokens) + 32 + 2 == 1024
