"""Which examples are held out where the recipe names no others."""

from __future__ import annotations

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
