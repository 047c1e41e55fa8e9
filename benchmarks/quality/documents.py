"""Registers of invented people, distilled into fewer tokens, measured by questions in words that no lesson has."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer

from antefix.training import Distillation, distill
from antefix.training.distillation.settings import Objective
from benchmarks.quality.pretraining import BASE
from benchmarks.quality.registers import Register

CACHE = Path(__file__).parent / "cache"
"""Where documents and prefixes lie while the study goes on; their figures are in its ledger."""
NUM_PEOPLE = 18
SEEDS = (0, 1, 2)
UNSEEN = (10, 11, 12)
"""Registers that nothing was chosen by."""
RATIOS = (5, 10, 20, 40)
"""How many tokens of the document there are to each of the prefix."""
LESSONS: Mapping[str, Any] = {
    "num_lessons": 1500,
    "max_new_tokens": 30,
    "kinds": ("question",),
    "temperature": 1.0,
    "epochs": 20.0,
    "learning_rate": 0.1,
}
"""About halves of a register, in words as short as leave room for a whole one in the base's positions."""
AT_ONCE: Mapping[str, Any] = {**LESSONS, "chunk_length": 356}
"""A whole register at once: chunks as long as the base has positions for beside such lessons."""
BY_DEFAULT: Mapping[str, Any] = {"max_new_tokens": 30}
"""The defaults of `antefix distill`, but for lessons as short."""


@dataclass(frozen=True)
class Distilled:
    """A register made with a seed, distilled at a ratio; its figures are the report of `antefix distill`."""

    seed: int
    ratio: int
    objective: Objective = "kl"
    lessons: Mapping[str, Any] = field(default_factory=lambda: LESSONS)

    @property
    def identity(self) -> dict[str, Any]:
        """What it is, as JSON has it."""
        found: dict[str, Any] = json.loads(json.dumps({"task": "documents", **asdict(self)}))
        return found

    def __str__(self) -> str:
        """Return the name of its folder: another one with other lessons."""
        lessons = hashlib.sha256(json.dumps(self.lessons, sort_keys=True).encode()).hexdigest()[:8]
        return f"register-{self.seed}-{self.ratio}-{self.objective}-{lessons}"

    def execute(self) -> dict[str, Any]:
        """Distil, going on where that was interrupted; return the report."""
        document, questions = self._written()
        settings = Distillation(
            model=str(BASE),
            document=str(document),
            output=str(self._folder),
            prefix={"num_virtual_tokens": -(-self._num_tokens(document) // self.ratio)},
            eval_data=str(questions),
            prompt="Question: {question}\nAnswer:",
            answer=" {answer}",
            objective=self.objective,
            seed=self.seed,
            **self.lessons,
        )
        report = self._folder / "distillation.json"
        if not report.is_file():
            distill(settings, Console(quiet=True), resume=self._folder.exists())
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    @property
    def _folder(self) -> Path:
        return CACHE / str(self)

    def _written(self) -> tuple[Path, Path]:
        """Write the document and questions about it."""
        folder = CACHE / "texts" / str(self)
        folder.mkdir(parents=True, exist_ok=True)
        register = Register.draw(random.Random(f"register {self.seed}"), NUM_PEOPLE)
        (folder / "register.txt").write_text(register.text)
        asked = [{"question": question, "answer": answer} for question, answer in register.held_out()]
        (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
        return folder / "register.txt", folder / "questions.jsonl"

    def _num_tokens(self, document: Path) -> int:
        return len(AutoTokenizer.from_pretrained(BASE)(document.read_text())["input_ids"])


PLAN = [
    *(Distilled(seed, ratio) for seed in SEEDS for ratio in RATIOS),
    *(Distilled(seed, 10, "next-token") for seed in SEEDS),
    *(Distilled(seed, 10, lessons=AT_ONCE) for seed in SEEDS),
    *(Distilled(seed, 10, lessons=BY_DEFAULT) for seed in SEEDS),
    *(Distilled(seed, ratio) for ratio in (10, 20) for seed in UNSEEN),
    *(Distilled(seed, 10, lessons=BY_DEFAULT) for seed in UNSEEN),
]
