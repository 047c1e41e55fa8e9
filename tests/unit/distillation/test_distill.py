"""distill as a whole: a document that says how to answer becomes a prefix, also when it is interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, Lfm2Config

import antefix
from antefix.embedded import model_path
from antefix.embedded.records import draw_examples
from antefix.errors import (
    AntefixError,
    ConfigError,
    ContextLengthError,
    DataError,
    DivergedError,
    UnsupportedModelError,
)
from antefix.training import Distillation, DistillationResult, Recipe, distill, train
from antefix.training.base import load_base
from antefix.training.distillation.lessons import Round
from antefix.training.distillation.prepare import prepare
from antefix.training.distillation.room import chunk_length
from antefix.training.distillation.run import folder_of
from antefix.training.generation import answers
from antefix.training.progress import ProgressCallback
from tests.unit.distillation.conftest import TEMPLATE
from tests.unit.distillation.test_teacher import SHAPE

QUIET = Console(quiet=True)
PROMPT = "{source}\n=>\n"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "document.txt").write_text("style: letter\n")
    for name, number, seed in (("asked", 96, 1), ("held", 24, 2)):
        rows = draw_examples("letter", number, seed)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": "embedded",
        "document": str(tmp_path / "document.txt"),
        "output": str(tmp_path / "run"),
        "prefix": {"num_virtual_tokens": 8},
        "data": str(tmp_path / "asked.jsonl"),
        "eval_data": str(tmp_path / "held.jsonl"),
        "prompt": PROMPT,
        "answer": "{target}",
        "epochs": 3,
    }


def run(settings: dict[str, Any], resume: bool = False, **changes: Any) -> DistillationResult:
    return distill(Distillation(**{**settings, **changes}), QUIET, resume)


def test_a_prefix_does_what_the_document_made_the_base_do(settings: dict[str, Any]) -> None:
    result = run(settings)
    report = result.report
    for part in ("held_out", "questions"):
        assert report[part]["base"]["kl"] > 0.01, "without the document the base must choose a style"
        assert report[part]["prefix"]["kl"] < 0.1 * report[part]["base"]["kl"]
        assert report[part]["document"]["loss"] < report[part]["base"]["loss"]
        assert abs(report[part]["prefix"]["loss"] - report[part]["document"]["loss"]) < 0.01
    assert report["teacher"]["share_seen"] == 1.0
    assert report["lessons"]["usable"] == 96
    assert report["prefix"] == {"tokens": 8, "bytes": 8 * 6 * 2 * 2 * 32 * 4}
    assert json.loads(result.report_path.read_text()) == report
    model, preprocessor = load_base("embedded")
    bank = antefix.attach(model)
    bank.load(result.prefix_path, "letter")
    rows = draw_examples("letter", 20, seed=3)
    with bank.use("letter"):
        written = answers(model, preprocessor, [PROMPT.format(**row) for row in rows], max_new_tokens=80)
    right = sum(answer == row["target"] for answer, row in zip(written, rows, strict=True))
    assert right >= 16, "with its header the base writes 98 in 100"


def test_the_next_token_alone_teaches_as_well(settings: dict[str, Any]) -> None:
    report = run(settings, objective="next-token").report
    assert report["questions"]["prefix"]["loss"] < 0.5 * report["questions"]["base"]["loss"]


def test_interrupted_anywhere_it_goes_on_to_the_same_prefix(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = antefix.load_prefix(run(settings, output=str(tmp_path / "whole")).prefix_path)
    save, saved = Round.save, []

    def save_twice(self: Round, path: Path) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(self, path)

    monkeypatch.setattr(Round, "save", save_twice)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.undo()
    step_end = ProgressCallback.on_step_end

    def stop_amid(self: ProgressCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressCallback, "on_step_end", stop_amid)
    with pytest.raises(KeyboardInterrupt):
        run(settings, resume=True)
    assert not (tmp_path / "run" / "prefix.safetensors").exists()
    monkeypatch.undo()
    steps: list[int] = []

    def count(self: ProgressCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        steps.append(state.global_step)

    monkeypatch.setattr(ProgressCallback, "on_step_end", count)
    resumed = antefix.load_prefix(run(settings, resume=True).prefix_path)
    assert steps[0] > 1, "what was trained is not trained again"
    for path in whole.keys:
        assert torch.equal(whole.keys[path], resumed.keys[path])
        assert torch.equal(whole.values[path], resumed.values[path])


def test_a_long_document_is_studied_in_chunks(settings: dict[str, Any], tmp_path: Path) -> None:
    lines = "".join(f"{row['source']}\n" for row in draw_examples("record", 80, seed=5))
    (tmp_path / "document.txt").write_text(lines)
    report = run(
        settings, data=None, kinds=("note",), num_lessons=96, max_new_tokens=16, prefix={}, temperature=1.0, epochs=1
    ).report
    assert report["document"]["tokens"] > 1024 > report["teacher"]["tokens_at_once"]
    assert report["teacher"]["share_seen"] == 1.0
    assert report["prefix"]["tokens"] == -(-report["document"]["tokens"] // 10)
    assert set(report["questions"]) == {"base", "prefix"}, "there is no context that holds this document"


def test_a_document_is_studied_in_halves_and_measured_as_a_whole(settings: dict[str, Any], tmp_path: Path) -> None:
    lines = "".join(f"{row['source']}\n" for row in draw_examples("record", 8, seed=5))
    (tmp_path / "document.txt").write_text(f"{lines}style: letter\n")
    changes = {"data": None, "kinds": ("note",), "num_lessons": 64, "max_new_tokens": 16, "prefix": {}, "epochs": 1}
    report = run(settings, **changes).report
    num_tokens = report["document"]["tokens"]
    assert report["teacher"] == {"tokens_at_once": -(-num_tokens // 2), "share_seen": 1.0}
    at_once = run(settings, **changes, chunk_length=num_tokens, output=str(tmp_path / "at once")).report
    assert at_once["teacher"]["tokens_at_once"] == num_tokens
    assert report["questions"]["document"] == at_once["questions"]["document"]
    assert report["questions"]["base"]["kl"] > 0.01, "the document changes what the base says"


@pytest.mark.parametrize(
    ("num_tokens", "room", "expected"),
    [(30, None, 64), (201, None, 101), (201, 80, 80), (10_000, None, 4096), (10_000, 5000, 4096)],
)
def test_chunks_are_halves_of_what_is_neither_short_nor_long(num_tokens: int, room: int | None, expected: int) -> None:
    assert chunk_length(Distillation(model="m", document="d"), num_tokens, room, 352) == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kinds": ("poem",)}, ConfigError, "kinds names 'poem'"),
        ({"objective": "mse"}, ConfigError, "objective is 'mse'"),
        ({"prefix": None}, ConfigError, "prefix is None; it must be a PrefixConfig or a mapping"),
        ({"prefix": [1]}, ConfigError, r"prefix is \[1\]; it must be a PrefixConfig or a mapping"),
        ({"kinds": None}, ConfigError, "kinds is None; it must be a list"),
        ({"prefix": {"num_virtual_tokens": 0}}, ConfigError, "num_virtual_tokens is 0"),
        ({"prompt": None}, ConfigError, "which prompt or messages must word"),
        ({"answer": None}, ConfigError, "need their answers"),
        ({"chunk_length": 5000, "data": None}, ConfigError, "leave room for 672"),
        ({"chunk_length": 10}, ConfigError, "chunk_length is 10, but the questions of data"),
        ({"max_new_tokens": 600, "data": None}, ContextLengthError, "set fewer num_virtual_tokens or max_new_tokens"),
        ({"document": "nowhere.txt"}, DataError, "'nowhere.txt' cannot be read"),
        ({"num_logits": 0}, ConfigError, "num_logits is 0"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"warmup_ratio": 1.0}, ConfigError, "warmup_ratio is 1.0; it must be at least 0 and below 1"),
        ({"prefix": {"num_frozen_tokens": 4}}, ConfigError, "num_frozen_tokens is 4"),
        ({"answer": "{author}"}, DataError, "names the field 'author'"),
        ({"prompt": "{question}"}, DataError, "names the field 'question'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], error: type[AntefixError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(settings, **changes)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_would_not_read_the_document_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_config(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]))
    base.save_pretrained(tmp_path / "base")
    load_base("embedded")[1].tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UnsupportedModelError, match="distill takes a base whose every layer attends"):
        run(settings, model=str(tmp_path / "base"))
    assert not (tmp_path / "run").exists()


def test_a_prefix_may_be_given_as_its_config() -> None:
    given = Distillation(model="m", document="d", prefix=antefix.PrefixConfig(32, dropout=0.1))  # type: ignore[arg-type]
    assert given.prefix == {"num_virtual_tokens": 32, "dropout": 0.1}
    assert given == Distillation.from_settings(given.as_dict())
    assert given.prefix_config(900, "text").init_text == "text"


def test_a_chunk_leaves_room_for_a_long_chat_template(settings: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(model_path(), tmp_path / "base")
    system = "You are of great help. " * 30
    tokenizer = load_base("embedded")[1].tokenizer
    tokenizer.chat_template = system + TEMPLATE
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "document.txt").write_text("Bomar likes chess.\n" * 400)
    study = {
        **settings,
        "model": str(tmp_path / "base"),
        "data": None,
        "eval_data": None,
        "prompt": None,
        "answer": None,
    }
    room = prepare(Distillation(**study)).study.chunk_length
    assert room + len(tokenizer(system)["input_ids"]) + 2 * 128 <= 1024
    with pytest.raises(ConfigError, match=f"leave room for {room}"):
        prepare(Distillation(**study, chunk_length=room + 1))


def test_questions_want_a_document_that_fits(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "document.txt").write_text("style: letter\n" * 400)
    with pytest.raises(ConfigError, match="leave data out, and the base studies it in chunks"):
        run(settings)


def test_a_document_fits_by_the_questions_themselves(settings: dict[str, Any]) -> None:
    """The embedded model has 1,024 positions: 900 for an answer leave room for these questions, not for a lesson."""
    assert prepare(Distillation(**{**settings, "max_new_tokens": 900})).fits
    with pytest.raises(ConfigError, match=r"answer \(up to 1,000\).* the 1,024 that this model reads at once"):
        prepare(Distillation(**{**settings, "max_new_tokens": 1000}))


def test_questions_are_measured_with_a_document_that_leaves_them_room(settings: dict[str, Any], tmp_path: Path) -> None:
    assert max(map(len, Path(settings["eval_data"]).read_text().splitlines())) < 300, "a token has a letter at least"
    _, preprocessor = load_base("embedded")
    line = "style: letter\n"
    per_line = len(preprocessor.tokenizer(line * 2)["input_ids"]) - len(preprocessor.tokenizer(line)["input_ids"])
    study = {**settings, "data": None, "max_new_tokens": 400}
    (tmp_path / "document.txt").write_text(line * (700 // per_line))
    assert prepare(Distillation(**study)).fits, "lessons of up to 896 tokens leave 128, these questions far more"
    (tmp_path / "document.txt").write_text(line * (1020 // per_line))
    assert not prepare(Distillation(**study)).fits


def test_a_folder_keeps_its_distillation(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no unfinished run to resume"):
        run(settings, resume=True)
    (tmp_path / "run").mkdir()
    folder_of(Distillation(**settings)).begin()
    with pytest.raises(ConfigError, match="holds a distillation already"):
        run(settings)
    with pytest.raises(ConfigError, match="another seed; resume it with the same"):
        run(settings, resume=True, epochs=1.0, seed=7)
    with pytest.raises(ConfigError, match="holds a run of another command; remove the folder"):
        train(Recipe("embedded", settings["data"], "{source}", "{target}", output=settings["output"]), QUIET)
    (tmp_path / "document.txt").write_text("style: verse\n")
    with pytest.raises(ConfigError, match="another content of document; resume it with the same"):
        run(settings, resume=True)


def test_lessons_outlive_a_training_that_diverged(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="lessons are kept: go on by --resume with the lower one"):
        run(settings, learning_rate=1e39)
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "lessons").iterdir()}
    resumed = run(settings, resume=True, epochs=1)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    fresh = run(settings, output=str(tmp_path / "fresh"), epochs=1)
    found = [antefix.load_prefix(result.prefix_path).content_hash() for result in (resumed, fresh)]
    assert found[0] == found[1]


def test_lessons_that_nothing_tells_of_are_not_learned_from(settings: dict[str, Any], tmp_path: Path) -> None:
    """Whose document they are of is in settings.json alone."""
    run(settings, epochs=1)
    first = tmp_path / "run" / "lessons" / "00000.safetensors"
    of_letters = first.read_bytes()
    (tmp_path / "run" / "settings.json").unlink()
    (tmp_path / "document.txt").write_text("style: verse\n")
    run(settings, epochs=1)
    assert first.read_bytes() != of_letters
