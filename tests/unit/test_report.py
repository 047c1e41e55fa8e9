"""What an evaluation looks like: tables, Markdown, JSON and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from antefix.errors import ConfigError
from antefix.training.bootstrap import Comparison
from antefix.training.evaluation import Evaluation
from antefix.training.metrics import bleu, exact_match, loss
from antefix.training.plain_json import as_json
from antefix.training.report import as_dict, as_markdown, differences, scores, write_report
from antefix.training.task import Measured

ANSWERS = (["a|b", "c"], ["a|b", "d"])
FOUND = Evaluation(
    measured={
        name: Measured(
            {
                "loss": loss(np.array([[total, 2.0]])),
                "exact_match": exact_match(answers, [["a|b"], ["d"]]),
                "bleu": bleu(answers, [["a|b"], ["d"]]),
            },
            answers,
        )
        for name, total, answers in (("base", 5.0, ANSWERS[0]), ("x|y", 1.0, ANSWERS[1]))
    },
    comparisons={"x|y": {"loss": Comparison(-2.0, -3.0, 0.5, 0.04321), "exact_match": Comparison(0.5, 0.0, 1.0, 1.0)}},
    num_examples=3,
    prompts=["p é", "q"],
    references=[["a|b"], ["d", "e"]],
)


def test_tables() -> None:
    heading, rows = scores(FOUND)
    assert heading == ("metric", "base", "x|y")
    assert rows[:2] == [("loss (nats)", "2.5000", "0.5000"), ("exact match", "50.0%", "100.0%")]
    heading, rows = differences(FOUND)
    assert heading == ("system", "metric", "difference to base", "95 % interval", "p")
    assert rows == [
        ("x|y", "loss (nats)", "-2.0000", "-3.0000 to +0.5000", "0.043"),
        ("x|y", "exact match", "+50.0%", "+0.0% to +100.0%", "1.000"),
    ]


def test_markdown_keeps_its_columns() -> None:
    text = as_markdown(FOUND)
    assert text.startswith("3 examples, 2 distinct prompts.\n\n| metric | base | x\\|y |\n| --- | --- | --- |\n| loss")
    assert "\n\n| system | metric |" in text
    alone = Evaluation({"base": FOUND.measured["base"]}, {}, 1, FOUND.prompts[:1], FOUND.references)
    assert as_markdown(alone).startswith("1 example, 1 distinct prompt.\n")
    assert "difference" not in as_markdown(alone)


def test_a_text_that_is_classified_twice_is_one_prompt() -> None:
    twice = Evaluation(FOUND.measured, {}, 2, ["same", "same"], [["no"], ["yes"]])
    assert as_markdown(twice).startswith("2 examples, 1 distinct prompt.\n")
    assert as_dict(twice, {})["num_prompts"] == 1


def test_json_and_answers(tmp_path: Path) -> None:
    paths = write_report(FOUND, tmp_path / "out", {"seed": 1})
    assert [path.name for path in paths] == ["evaluation.json", "evaluation.md", "answers.jsonl"]
    found = json.loads(paths[0].read_text())
    assert found == json.loads(json.dumps(as_dict(FOUND, {"seed": 1})))
    assert found["settings"] == {"seed": 1}
    assert found["systems"]["x|y"]["loss"] == 0.5
    assert found["comparisons"]["x|y"]["loss"] == {"difference": -2.0, "low": -3.0, "high": 0.5, "p_value": 0.04321}
    assert "nrefs:1" in found["signatures"]["bleu"]
    rows = [json.loads(line) for line in paths[2].read_text(encoding="utf-8").splitlines()]
    assert rows[1] == {"prompt": "q", "references": ["d", "e"], "answers": {"base": "c", "x|y": "d"}}
    assert "p é" in paths[2].read_text(encoding="utf-8")


def test_what_is_no_number_is_null_in_json() -> None:
    measured = {
        name: Measured({"loss": loss(np.array([[total, 1.0]]))}, ()) for name, total in (("a", 1.0), ("b", np.nan))
    }
    found = Evaluation(measured, {"b": {"loss": Comparison(np.nan, np.nan, np.nan, 1.0)}}, 1, ["p"], [["r"]])
    told = json.loads(as_json(as_dict(found, {})))
    assert told["systems"]["b"]["loss"] is None
    assert told["comparisons"]["b"]["loss"] == {"difference": None, "low": None, "high": None, "p_value": 1.0}


def test_all_files_are_written_or_none(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(FOUND, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_a_path_that_is_no_utf_8_is_kept_as_json_escapes_it() -> None:
    path = b"caf\xe9".decode(errors="surrogateescape")
    assert json.loads(as_json({"prefix": path, "loss": float("inf")})) == {"prefix": path, "loss": None}
