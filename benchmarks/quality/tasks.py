"""The three tasks of the study: a base for each, examples to learn from, and how well a model does."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from antefix.training.base import load_base
from antefix.training.classification import Classification
from antefix.training.examples import Example
from antefix.training.generation import answer_batch
from antefix.training.losses import answer_losses
from antefix.training.metrics import answer_metric
from antefix.training.tokens import Preprocessor, TextPreprocessor, TokenizedExamples
from benchmarks.quality.corpus import SHARED
from benchmarks.quality.pretraining import BASE

Scores = dict[str, float]
HEADLINE = {"e2e": "bleu", "phonemes": "exact_match", "family": "accuracy"}
"""The metric of each task that its table is sorted by."""
BATCH_SIZE = {"e2e": 8, "phonemes": 32, "family": 16}
STEPS = {"e2e": 200, "phonemes": 1000, "family": 200}
"""How long every method trains."""


@dataclass(frozen=True)
class Task:
    """A freshly loaded base, what encodes examples, and those to train on; `score` measures a model on `split`."""

    model: PreTrainedModel
    preprocessor: Preprocessor
    trained: Sequence[dict[str, Any]]
    score: Callable[[Any, str], Scores]

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return rows as one batch."""
        return self.preprocessor.collate(rows)


def load(name: str, num_examples: int | None = None, seed: int = 0) -> Task:
    """Load a task; `num_examples` of its examples, drawn by the seed, are there to train on, or all."""
    task, examples = {"e2e": _e2e, "phonemes": _phonemes, "family": _family}[name]()
    drawn = random.Random(seed).sample(examples, num_examples or len(examples))
    return Task(
        task.model,
        task.preprocessor,
        TokenizedExamples.of(drawn, task.preprocessor).features(task.preprocessor),
        task.score,
    )


def _e2e() -> tuple[Task, list[Example]]:
    """Say what a meaning representation says (Novikova et al. 2017)."""
    model, preprocessor = load_base(str(BASE))
    score = _Writing(preprocessor, _pairs, most=64, num_answers=200)
    return Task(model, preprocessor, (), score), _pairs("train")


def _phonemes() -> tuple[Task, list[Example]]:
    """Spell a word in British phonemes, by a model that knows the American ones."""
    folder = SHARED / "models" / "bart-g2p-us"
    model, preprocessor = load_base(str(folder), str(folder / "phonemes"))
    score = _Writing(preprocessor, _words, most=32, num_answers=1000)
    return Task(model, preprocessor, (), score), _words("train")


def _family() -> tuple[Task, list[Example]]:
    """Tell whether a text says that a place welcomes families."""
    task = Classification.load(str(BASE), ("no", "unsaid", "yes"))

    def score(model: Any, split: str) -> Scores:
        part = TokenizedExamples.of(_texts(split)[:1000], task.preprocessor)
        rows, right = part.features(task.preprocessor), torch.tensor([tokens.answer[0] for tokens in part.tokens])
        logits = []
        model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), 100):
                batch = task.preprocessor.collate(rows[start : start + 100])
                logits.append(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits)
        scores = torch.cat(logits)
        return {
            "loss": torch.nn.functional.cross_entropy(scores, right).item(),
            "accuracy": (scores.argmax(1) == right).float().mean().item(),
        }

    return Task(task.model, task.preprocessor, (), score), _texts("train")


@dataclass(frozen=True)
class _Writing:
    """Scores a model that writes: loss on at most 500 examples, and answers to distinct prompts."""

    preprocessor: TextPreprocessor
    read: Callable[[str], list[Example]]
    most: int
    num_answers: int

    def __call__(self, model: Any, split: str) -> Scores:
        """Return the loss, and of test data exact match, BLEU and chrF of what it writes."""
        known = self.read(split)
        examples = random.Random(0).sample(known, min(500, len(known)))
        rows = TokenizedExamples.of(examples, self.preprocessor).features(self.preprocessor)
        losses = torch.cat(
            [answer_losses(model, self.preprocessor, rows[start : start + 50]) for start in range(0, len(rows), 50)]
        )
        found = {"loss": (losses[:, 0].sum() / losses[:, 1].sum()).item()}
        if split == "validation":  # learning rates are chosen by the loss, and writing takes its time
            return found
        references: dict[str, list[str]] = {}
        for example in known:
            references.setdefault(example.prompt, []).append(example.answer)
        prompts = random.Random(0).sample(sorted(references), min(self.num_answers, len(references)))
        prompts.sort(key=len)
        written: list[str] = []
        for start in range(0, len(prompts), 50):
            ids = [self.preprocessor.prompt_ids(prompt) for prompt in prompts[start : start + 50]]
            written += answer_batch(model, self.preprocessor, ids, self.most)
        metrics = {
            name: answer_metric(name, written, [references[prompt] for prompt in prompts]).value
            for name in ("exact_match", "bleu", "chrf")
        }
        return {**found, **metrics}


@cache
def _lines(split: str) -> list[dict[str, str]]:
    folder = SHARED / "data" / "e2e_nlg"
    if split == "train":
        text = gzip.decompress((folder / "train.jsonl.gz").read_bytes()).decode()
    else:
        text = (folder / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _pairs(split: str) -> list[Example]:
    return [Example(f"{line['mr']}\n", line["ref"]) for line in _lines(split)]


def _texts(split: str) -> list[Example]:
    found = (re.search(r"familyFriendly\[(\w+)\]", line["mr"]) for line in _lines(split))
    return [
        Example(line["ref"], match[1] if match else "unsaid") for line, match in zip(_lines(split), found, strict=True)
    ]


@cache
def _words(split: str) -> list[Example]:
    """Return words whose British phonemes the American tokenizer can write at all."""
    signs = json.loads((SHARED / "models" / "bart-g2p-us" / "phonemes" / "tokenizer.json").read_text())["model"][
        "vocab"
    ]
    lines = (SHARED / "data" / "g2p_gb" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    words = [json.loads(line) for line in lines]
    return [Example(word["word"], word["gb"]) for word in words if set(word["gb"]) <= signs.keys()]
