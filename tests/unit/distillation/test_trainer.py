"""What a prefix is trained on, against the model's own loss and a divergence written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import TrainingArguments

from antefix.bank import PrefixBank
from antefix.config import PrefixConfig
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.settings import Objective
from antefix.training.distillation.teacher import Teacher
from antefix.training.distillation.trainer import Collator, DistillationTrainer, measure
from antefix.training.tokens import TextPreprocessor

Base = tuple[PrefixBank, TextPreprocessor]


@pytest.fixture
def lessons(base: Base) -> list[Lesson]:
    """Return two lessons of unequal length, with the whole vocabulary kept."""
    bank, preprocessor = base
    every = Teacher(bank, preprocessor, num_logits=10_000, temperature=1.0, max_new=8)
    prompt, rows = preprocessor.prompt_ids("name:"), ([40, 41, 42, 43], [50, 51])
    context = preprocessor.prompt_ids("style: letter\nname:")
    return every.lessons([Draft(context, prompt, row, [True] * len(row)) for row in rows])


def expected(bank: PrefixBank, lessons: list[Lesson], objective: Objective) -> float:
    """Compute the mean over all written tokens, one lesson at a time."""
    losses = []
    for lesson in lessons:
        with torch.no_grad():
            logits = bank.model(input_ids=torch.tensor([lesson.ids])).logits[0].log_softmax(-1)
        places = torch.tensor(lesson.is_written).nonzero()[:, 0]
        teacher = torch.empty(len(places), logits.shape[1])
        teacher.scatter_(1, lesson.targets.ids.long(), lesson.targets.log_probs.float())
        if objective == "kl":
            losses.append(kl_div(logits[places - 1], teacher, log_target=True, reduction="none").sum(1))
        else:
            losses.append(-logits[places - 1, torch.tensor(lesson.ids)[places]])
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("objective", ["kl", "next-token"])
def test_the_loss_is_the_mean_over_written_tokens(
    base: Base, lessons: list[Lesson], objective: Objective, tmp_path: Path
) -> None:
    bank, preprocessor = base
    bank.add("p", PrefixConfig(4), tokenizer=preprocessor.tokenizer)
    try:
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
        trainer = DistillationTrainer(bank, "p", args=args, objective=objective)
        loss = trainer.compute_loss(bank.model, Collator(0)(lessons))
        # Targets are in half precision.
        assert loss.item() == pytest.approx(expected(bank, lessons, objective), rel=2e-3)
        assert loss.requires_grad
    finally:
        bank.remove("p")


@pytest.mark.parametrize("objective", ["kl", "next-token"])
def test_lessons_weigh_the_same_in_however_many_batches(
    base: Base, lessons: list[Lesson], objective: Objective, tmp_path: Path
) -> None:
    bank, preprocessor = base
    found = []
    for batch_size in (2, 1):
        bank.add("p", PrefixConfig(4, num_frozen_tokens=0), tokenizer=preprocessor.tokenizer)
        args = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=2 // batch_size, max_steps=1,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, save_strategy="no", warmup_steps=0,
        )  # fmt: skip
        trainer = DistillationTrainer(
            bank, "p", args=args, objective=objective, train_dataset=lessons, data_collator=Collator(0)
        )
        loss = trainer.train().training_loss
        found.append((loss, bank.prefix("p").keys))
        bank.remove("p")
    (loss, keys), (in_parts, keys_in_parts) = found
    # Sums in another order.
    assert in_parts == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(keys_in_parts, keys, rtol=1e-5, atol=1e-6)


def test_measuring_does_not_depend_on_the_batch(base: Base, lessons: list[Lesson]) -> None:
    bank, _ = base
    with bank.use(None):
        together, single = (measure(bank.model, lessons, Collator(0), size) for size in (2, 1))
        assert together == pytest.approx(single, rel=1e-4)
        assert together["kl"] == pytest.approx(expected(bank, lessons, "kl"), rel=2e-3)
        assert together["loss"] == pytest.approx(expected(bank, lessons, "next-token"), rel=1e-4)
