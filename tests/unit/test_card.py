"""The lines by which a model card says how its prefix is loaded do load it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainerState, TrainingArguments

import antefix
from antefix.initialize import random_prefix
from antefix.sites import Site
from antefix.training.card import Subject, model_card
from antefix.training.classification import Classification
from tests.unit.test_classification import save


@pytest.mark.parametrize("num_labels", [2, 4])
def test_a_head_of_any_number_of_labels(tmp_path: Path, num_labels: int) -> None:
    base = save(tmp_path / "base", "BertModel")
    task = Classification.load(base, [f"label {number}" for number in range(num_labels)])
    bank = task.attach()
    bank.add("p", task.configure(antefix.PrefixConfig(3, init="random")), metadata=task.metadata)
    bank.save("p", tmp_path / "prefix.safetensors")
    args = TrainingArguments(output_dir=str(tmp_path / "run"), report_to=[])
    card = model_card(Subject.of(bank.prefix("p")), TrainerState(), args)
    (line,) = re.findall(r"^model = (.*)$", card, re.MULTILINE)
    names = {"AutoModelForSequenceClassification": AutoModelForSequenceClassification}
    model = eval(line.replace('"path/to/the/base/model"', repr(base)), names)
    antefix.attach(model).load(tmp_path / "prefix.safetensors", name="p")
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, task.model.bert.embeddings.word_embeddings.weight)


def test_a_run_in_the_folder_itself_has_the_name_of_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letters").mkdir()
    monkeypatch.chdir(tmp_path / "letters")
    sites = [Site("layer", "decoder", 0, 1, 1, 1)]
    card = model_card(
        Subject.of(random_prefix(sites, 2)), TrainerState(), TrainingArguments(output_dir=".", report_to=[])
    )
    assert "# letters\n" in card
    assert 'hf_hub_download("you/letters", "prefix.safetensors")' in card
