"""Drift is told where it is known what a prefix started as, and of nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import antefix
from antefix.embedded import model_path
from antefix.inspect.run import _drift
from antefix.training.task import Task

TOKENS = 8


@pytest.fixture(scope="module")
def task() -> Task:
    """Load what `_drift` asks of a task."""
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    return cast(Task, SimpleNamespace(model=model, preprocessor=SimpleNamespace(tokenizer=tokenizer)))


def test_drift_is_not_of_what_was_put_together(task: Task) -> None:
    bank = antefix.attach(task.model)
    prefixes = []
    for style in ("headline", "letter"):
        settings: dict[str, Any] = {"num_virtual_tokens": TOKENS, "init_text": f"style: {style}\n"}
        metadata = {"training": {"prefix": settings}}
        bank.add(style, antefix.PrefixConfig(**settings), tokenizer=task.preprocessor.tokenizer, metadata=metadata)
        prefixes.append(bank.prefix(style))
    one, other = prefixes
    for whole in (one, antefix.concat([one]), antefix.average([other])):
        found = _drift(task, bank, whole)
        assert found is not None
        assert max(found.keys + found.values) < 1e-5
    both = antefix.concat([one, other])
    for part in (one[1:], both, both[TOKENS:], antefix.average([one, other]), antefix.average([one, one])):
        assert _drift(task, bank, part) is None
