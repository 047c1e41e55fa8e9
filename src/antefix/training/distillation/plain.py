"""Self-study of a base that continues text: it completes lines that begin with `Question:`, `Note:` and the like."""

from __future__ import annotations

import random
from collections.abc import Sequence

from antefix.training.distillation.document import Chunk, as_context
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.seeds import OPENINGS
from antefix.training.distillation.teacher import Teacher
from antefix.training.tokens import TextPreprocessor


class PlainStudy:
    """Has the teacher write lines below a chunk, in whose place the student has only the opening token."""

    def __init__(self, teacher: Teacher, preprocessor: TextPreprocessor, kinds: Sequence[str]) -> None:
        self.teacher = teacher
        self.preprocessor = preprocessor
        self.kinds = kinds

    def lessons(self, chunk: Chunk, rng: random.Random, number: int) -> list[Lesson]:
        """Return the usable ones of `number` lessons about a chunk."""
        context = self.preprocessor.prompt_ids(as_context(chunk.text))
        openings = [OPENINGS[rng.choice(self.kinds)] for _ in range(number)]
        drafts = [Draft(context, self.preprocessor.prompt_ids(""), [], []) for _ in openings]
        is_whole = [True] * number
        with self.teacher.reading(context):
            for place in range(max(map(len, openings))):
                going_on = [row for row in range(number) if place < len(openings[row])]
                for row in going_on:
                    self._open(drafts[row], openings[row][place])
                written = self.teacher.write(
                    [drafts[row].continuation for row in going_on], rng.getrandbits(63), stops_at_line_break=True
                )
                for row, ids in zip(going_on, written, strict=True):
                    drafts[row].continuation.extend(ids)
                    drafts[row].is_written.extend([True] * len(ids))
                    is_whole[row] &= self._is_line(ids, is_last=place + 1 == len(openings[row]))
            drafts = [draft for draft, whole in zip(drafts, is_whole, strict=True) if whole]
            targets = self.teacher.targets(drafts, len(context)) if drafts else []
        return [Lesson.of(draft, found) for draft, found in zip(drafts, targets, strict=True)]

    def _open(self, draft: Draft, opening: str) -> None:
        """Add an opening to a draft as the tokenizer spells it there, at the beginning or after a line break."""
        before = "\n" if draft.continuation else ""
        known, ids = self._spell(before), self._spell(before + opening)
        ids = ids[len(known) :] if ids[: len(known)] == known else self._spell(opening)
        draft.continuation.extend(ids)
        draft.is_written.extend([False] * len(ids))

    def _spell(self, text: str) -> list[int]:
        return list(self.preprocessor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _is_line(self, ids: list[int], is_last: bool) -> bool:
        """Return whether a line was written to its end and is not empty; only the last may have more after it."""
        line, _, rest = self.preprocessor.text(ids).partition("\n")
        if not line.strip() or not self.teacher.ended(ids, stops_at_line_break=True):
            return False
        return is_last or (ids[-1] in self.teacher.line_breaks and not rest)
