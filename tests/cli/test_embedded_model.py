"""The embedded model: what it holds and what it can do."""

from __future__ import annotations

import io
import json
import random
import shlex
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from antefix.cli import demo
from antefix.embedded import model_path
from antefix.embedded.records import FORMS, Record, draw_examples, draw_record, prompt
from antefix.training import TrainingResult
from antefix.training.base import load_base
from antefix.training.checkpoint import TRAINED_NAME
from antefix.training.examples import Example
from antefix.training.generation import answers
from antefix.training.metrics import exact_match
from antefix.training.resume import RunFolder
from antefix.training.trainer import PrefixTrainer
from tests.cli.conftest import Invoke


def test_a_demo_that_was_interrupted_begins_anew(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    least = ("demo", "--num-examples", "10", "--epochs", "1")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PrefixTrainer, "_inner_training_loop", interrupt)
        assert invoke(*least).exit_code == 130
    checkpoint = tmp_path / "antefix-demo" / "headline" / "checkpoint-1"
    checkpoint.mkdir()
    save_file({"moved": torch.zeros(1)}, checkpoint / TRAINED_NAME)
    (checkpoint / "trainer_state.json").write_text("{}")
    assert RunFolder(str(checkpoint.parent), {}, ()).is_begun
    assert invoke(*least).exit_code == 0


def test_the_embedded_model_is_small_and_has_its_card() -> None:
    assert sum(file.stat().st_size for file in model_path().iterdir()) < 10_000_000
    assert "cannot do" in (model_path() / "README.md").read_text()
    model, preprocessor = load_base("embedded")
    assert 2_000_000 <= model.num_parameters() <= 5_000_000
    assert preprocessor.tokenizer.padding_side == "left"


def test_a_header_chooses_the_form() -> None:
    model, preprocessor = load_base("embedded")
    rng = random.Random(5)

    def share_right(examples: list[Example]) -> float:
        most = max(len(preprocessor.tokenize(e).answer) for e in examples)
        given = answers(model, preprocessor, [e.prompt for e in examples], most)
        return exact_match(given, [[e.answer] for e in examples]).value

    right = {}
    for form in ("headline", "letter", "json", "quiz"):
        records = [draw_record(rng) for _ in range(20)]
        right[form] = share_right([Example(prompt(r.tell("record", rng), form), r.tell(form)) for r in records])
    prose = [draw_record(rng) for _ in range(20)]
    right["back"] = share_right([Example(prompt(r.tell("plain"), "record"), r.tell("record")) for r in prose])
    print(f"embedded model, exact match by header: {right}")
    assert min(right.values()) >= 0.9


def test_records_are_drawn_from_their_seed_and_told_in_every_form() -> None:
    assert draw_examples("verse", 5, seed=1) == draw_examples("verse", 5, seed=1) != draw_examples("verse", 5, seed=2)
    record = draw_record(random.Random(0))
    assert len({record.tell(form) for form in FORMS}) == len(FORMS)
    fields = {"name": "A", "job": "b", "town": "C", "age": "4", "likes": "d"}
    assert Record("person", fields).tell("record") == "name: A | job: b | town: C | age: 4 | likes: d"
    assert json.loads(Record("person", fields).tell("json")) == fields
    for kind in ("person", "place", "book"):
        record = next(r for r in (draw_record(random.Random(s)) for s in range(99)) if r.kind == kind)
        for form in FORMS:
            assert all(value in record.tell(form) for value in record.fields.values())


def test_the_commands_to_go_on_with_can_be_typed_in(tmp_path: Path) -> None:
    """A folder may have a space in its name."""
    folder = tmp_path / "my demo"
    files = [folder / form / "prefix.safetensors" for form in demo.FORMS]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    results = {form: TrainingResult(file, file, None, {}) for form, file in zip(demo.FORMS, files, strict=True)}
    printed = io.StringIO()
    demo._print_next_steps(results, Console(file=printed, width=400))
    generate, train = (shlex.split(line) for line in printed.getvalue().splitlines() if " --prompt " in line)
    assert generate[generate.index("--prefix") + 1] == str(files[0])
    assert train[train.index("--output") + 1] == str(folder / "short")
    assert train[train.index("--data") + 1] == str(folder / "letter.jsonl")
