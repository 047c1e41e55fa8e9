"""Registers of invented people, distilled into fewer tokens, measured by questions in words that no lesson has."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer

from antefix.training import Distillation, distill
from antefix.training.distillation.settings import Objective
from benchmarks.quality.base import CACHE, base_folder
from benchmarks.quality.registers import Register

NUM_PEOPLE = 18
SEEDS = (0, 1, 2)
RATIOS = (5, 10, 20, 40)
"""How many tokens of the document there are to each of the prefix."""
LESSONS = {
    "num_lessons": 1500,
    "max_new_tokens": 30,
    "kinds": ("question",),
    "temperature": 1.0,
    "epochs": 20.0,
    "learning_rate": 0.1,
}


@dataclass(frozen=True)
class Distilled:
    """A register made with a seed, distilled at a ratio; `report` is what `antefix distill` says of it."""

    seed: int
    ratio: int
    objective: Objective = "kl"

    @property
    def is_done(self) -> bool:
        """Whether its figures are there."""
        return (self._folder / "distillation.json").is_file()

    @property
    def file_name(self) -> str:
        """The name of its folder: another one with other lessons."""
        lessons = hashlib.sha256(json.dumps(LESSONS, sort_keys=True).encode()).hexdigest()[:8]
        return f"register-{self.seed}-{self.ratio}-{self.objective}-{lessons}"

    def __str__(self) -> str:
        return self.file_name

    def figures(self) -> dict[str, Any]:
        """Return the report; distil first, if that was not done."""
        if not self.is_done:
            document, questions = self._written()
            settings = Distillation(
                model=str(base_folder()),
                document=str(document),
                output=str(self._folder),
                prefix={"num_virtual_tokens": -(-self._num_tokens(document) // self.ratio)},
                eval_data=str(questions),
                prompt="Question: {question}\nAnswer:",
                answer=" {answer}",
                objective=self.objective,
                seed=self.seed,
                **LESSONS,
            )
            distill(settings, Console(quiet=True), resume=self._folder.exists())
        found: dict[str, Any] = json.loads((self._folder / "distillation.json").read_text())
        return found

    @property
    def _folder(self) -> Path:
        return CACHE / "base" / "documents" / self.file_name

    def _written(self) -> tuple[Path, Path]:
        """Write the document and questions about it."""
        folder = CACHE / "base" / "documents" / "texts" / self.file_name
        folder.mkdir(parents=True, exist_ok=True)
        register = Register.draw(random.Random(f"register {self.seed}"), NUM_PEOPLE)
        (folder / "register.txt").write_text(register.text)
        asked = [{"question": question, "answer": answer} for question, answer in register.held_out()]
        (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
        return folder / "register.txt", folder / "questions.jsonl"

    def _num_tokens(self, document: Path) -> int:
        return len(AutoTokenizer.from_pretrained(base_folder())(document.read_text())["input_ids"])


PLAN = [
    *(Distilled(seed, ratio) for seed in SEEDS for ratio in RATIOS),
    *(Distilled(seed, 10, "next-token") for seed in SEEDS),
]
